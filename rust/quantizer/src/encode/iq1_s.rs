use super::{Encode,target::Target};
use kizami_kernels::formats::iq1_s::*;
impl Encode<256> for Iq1S { type Block = BlockIq1S; fn encode(_: &Target<256>) -> BlockIq1S { bytemuck::Zeroable::zeroed() } }
