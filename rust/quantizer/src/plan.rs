//! x
/// x
pub fn solve(_:&[Vec<u64>],_:&[Vec<f64>],_:u64)->Result<Vec<usize>,crate::Error>{unimplemented!()}
