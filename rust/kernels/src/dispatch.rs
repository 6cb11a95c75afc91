//! Which instruction set runs: asked of the CPU once, lowered by `KIZAMI_ISA`, never raised.
//!
//! Knows the list of levels and how to enter one. A new instruction set is one file under `isa/`
//! and one line in the table here.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
use crate::isa::neon;
use crate::isa::{Isa, environment::Environment, scalar::Scalar};
#[cfg(target_arch = "x86_64")]
use crate::isa::{avx2, avx512};
use std::sync::atomic::{AtomicU8, Ordering};

/// Work that is written once and compiled for every level. `run` must be `#[inline(always)]`, as
/// must everything it calls: what is not inlined runs with baseline instructions.
pub trait Op {
    /// What the work returns.
    type Out;
    /// Does the work with the primitives of one instruction set.
    fn run<I: Isa>(self, isa: I) -> Self::Out;
}

macro_rules! levels {
    ($($(#[$cfg:meta])* $level:ident $name:literal, $detected:expr, $enter:expr;)*) => {
        /// An instruction-set level, lowest first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Level {
            $(#[doc = $name] $(#[$cfg])* $level,)*
        }

        impl Level {
            /// All levels this build knows, lowest first.
            pub const ALL: &[Level] = &[$($(#[$cfg])* Level::$level,)*];

            /// The name `KIZAMI_ISA` takes.
            pub fn name(self) -> &'static str {
                match self { $($(#[$cfg])* Level::$level => $name,)* }
            }

            /// Whether this CPU can run it.
            pub fn available(self) -> bool {
                match self { $($(#[$cfg])* Level::$level => $detected,)* }
            }

            #[inline]
            fn enter<O: Op>(self, op: O) -> O::Out {
                match self { $($(#[$cfg])* Level::$level => $enter(op),)* }
            }
        }
    };
}

levels! {
    Scalar "scalar", true, |op: O| op.run(Scalar);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `enter` is reached only with a level that `Level::available` has confirmed.
    Avx2 "avx2", avx2::detected(), |op| unsafe { avx2::enter(avx2::Avx2::new_unchecked(), op) };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    AvxVnni "avxvnni", avx2::detected_vnni(), |op| unsafe { avx2::enter_vnni(avx2::Avx2::new_unchecked(), op) };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    Avx512 "avx512", avx512::detected(), |op| unsafe { avx512::enter(avx512::Avx512::new_unchecked(), op) };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    Avx512Vbmi "avx512vbmi", avx512::detected_vbmi(), |op| unsafe { avx512::enter_vbmi(avx512::Avx512::new_unchecked(), op) };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    Neon "neon", neon::detected(), |op| unsafe { neon::enter(neon::Neon::new_unchecked(), op) };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    Dotprod "dotprod", neon::detected_dotprod(), |op| unsafe { neon::enter_dotprod(neon::Neon::new_unchecked(), op) };
}

impl Level {
    /// The level with this name.
    pub fn from_name(name: &str) -> Option<Level> {
        Self::ALL.iter().copied().find(|l| l.name() == name)
    }
}

const UNSET: u8 = u8::MAX;
static LEVEL: AtomicU8 = AtomicU8::new(UNSET);

/// The levels this CPU can run, lowest first.
pub fn levels() -> Vec<Level> {
    Level::ALL.iter().copied().filter(|l| l.available()).collect()
}

/// The highest of these levels, at most the one asked for: a CPU with AVX-512 may have no AVX-VNNI.
fn choose(available: &[Level], asked: Option<Level>) -> Level {
    let allowed = |&level: &Level| asked.is_none_or(|asked| level <= asked);
    available.iter().copied().filter(allowed).max().unwrap_or(Level::Scalar)
}

/// The level in use: the highest available, but none above the one that `KIZAMI_ISA` names.
pub fn level() -> Level {
    let stored = LEVEL.load(Ordering::Relaxed);
    if let Some(level) = Level::ALL.iter().copied().find(|l| *l as u8 == stored) {
        return level;
    }
    let asked = std::env::var("KIZAMI_ISA").ok().and_then(|name| Level::from_name(&name));
    let level = choose(&levels(), asked);
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// Uses `level` from now on; false, and no change, where this CPU cannot run it. Results do not
/// depend on it, so changing it while work is under way is harmless.
pub fn set_level(level: Level) -> bool {
    let ok = level.available();
    if ok {
        LEVEL.store(level as u8, Ordering::Relaxed);
    }
    ok
}

/// Runs `op` on the level in use.
#[inline]
pub fn dispatch<O: Op>(op: O) -> O::Out {
    let _environment = Environment::default();
    level().enter(op)
}

/// Runs `op` on a given level; none where this CPU cannot.
pub fn dispatch_at<O: Op>(level: Level, op: O) -> Option<O::Out> {
    let _environment = Environment::default();
    level.available().then(|| level.enter(op))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_missing_gives_way_to_the_next_below() {
        let all = Level::ALL;
        for (i, &missing) in all.iter().enumerate().skip(1) {
            let available: Vec<Level> = all.iter().copied().filter(|&level| level != missing).collect();
            assert_eq!(choose(&available, Some(missing)), all[i - 1]);
            assert_eq!(choose(&available, Some(Level::Scalar)), Level::Scalar);
            assert_eq!(choose(&available, None), *available.last().expect("scalar"));
        }
        assert_eq!(choose(all, None), *all.last().expect("scalar"));
    }
}
