//! Each target with each of its seeds.

use mvm_fuzz_targets::corpus::run;

macro_rules! targets {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            run(stringify!($name), mvm_fuzz_targets::$name());
        }
    )* };
}

targets! { requests answers handshake drop_ins session verbs unpack policy records manifests }
