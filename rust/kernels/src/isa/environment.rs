//! The float environment that results rely on: rounding to nearest, subnormal numbers kept.
//!
//! Kernels run on whatever thread calls them, and another library may have told that thread's processor to flush
//! subnormals to zero, or to round otherwise. For as long as a kernel runs that is undone.

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    pub(super) type Word = u32;
    /// MXCSR with all exceptions masked.
    pub(super) const DEFAULT: Word = 0x1f80;
    /// What exceptions there have been: of no consequence.
    pub(super) const FLAGS: Word = 0x3f;
    /// Flush to zero, subnormal inputs are zeros, round towards zero.
    #[cfg(test)]
    pub(super) const HOSTILE: Word = DEFAULT | 1 << 15 | 1 << 6 | 3 << 13;

    pub(super) fn read() -> Word {
        let mut word = 0;
        // SAFETY: SSE is part of x86-64; the instruction writes the four bytes of `word`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
        word
    }

    pub(super) fn write(word: Word) {
        // SAFETY: as above; the word is `DEFAULT` or was read from the register, so no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    pub(super) type Word = u64;
    /// FPCR as a thread starts.
    pub(super) const DEFAULT: Word = 0;
    pub(super) const FLAGS: Word = 0;
    /// Flush to zero, subnormal inputs too; round towards zero.
    #[cfg(test)]
    pub(super) const HOSTILE: Word = 1 << 24 | 3 << 22;

    pub(super) fn read() -> Word {
        let word;
        // SAFETY: every aarch64 that runs this crate has FPCR, readable from user space.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nomem, nostack, preserves_flags)) };
        word
    }

    pub(super) fn write(word: Word) {
        // SAFETY: as above; the word is `DEFAULT` or was read from the register.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nomem, nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod register {
    pub(super) type Word = u32;
    pub(super) const DEFAULT: Word = 0;
    pub(super) const FLAGS: Word = 0;

    pub(super) fn read() -> Word {
        DEFAULT
    }

    pub(super) fn write(_: Word) {}
}

/// The thread's environment is the default one while this lives.
pub(crate) struct Environment {
    before: register::Word,
}

impl Environment {
    #[inline]
    pub(crate) fn default() -> Self {
        let before = register::read();
        if before & !register::FLAGS != register::DEFAULT {
            register::write(register::DEFAULT);
        }
        Self { before }
    }
}

impl Drop for Environment {
    #[inline]
    fn drop(&mut self) {
        if self.before & !register::FLAGS != register::DEFAULT {
            register::write(self.before);
        }
    }
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::register;
    use crate::isa::Isa;
    use crate::{dispatch::Op, dispatch::dispatch_at, levels};
    use std::hint::black_box;

    /// Half of the smallest normal number.
    struct Halve;

    impl Op for Halve {
        type Out = [f32; 16];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [f32; 16] {
            let mut out = [0.0; 16];
            isa.store(isa.mul(isa.splat(black_box(f32::MIN_POSITIVE)), isa.splat(black_box(0.5))), &mut out);
            out
        }
    }

    #[test]
    fn kernels_keep_subnormals_whatever_the_thread_was_told() {
        let before = register::read();
        for level in levels() {
            register::write(register::HOSTILE);
            let flushed = black_box(f32::MIN_POSITIVE) * black_box(0.5);
            let found = dispatch_at(level, Halve).expect("an available level");
            let after = register::read();
            register::write(before);
            assert_eq!(flushed, 0.0, "the test's own premise");
            assert_eq!(found, [f32::MIN_POSITIVE * 0.5; 16], "{level:?}");
            assert_eq!(after & !register::FLAGS, register::HOSTILE);
        }
    }
}
