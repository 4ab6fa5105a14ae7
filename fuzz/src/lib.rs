//! Runs what is fuzzed with cargo-fuzz. What it does with its bytes is in `crates/mvm-fuzz-targets`,
//! and in the modules `fuzz` of the programs.

pub use libfuzzer_sys;

/// A target that is made once, before the first bytes.
#[macro_export]
macro_rules! target {
    ($make:path) => {
        std::thread_local! {
            static TARGET: std::cell::RefCell<Box<dyn FnMut(&[u8])>> =
                std::cell::RefCell::new(Box::new($make()));
        }

        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            TARGET.with_borrow_mut(|target| target(input));
        });
    };
}
