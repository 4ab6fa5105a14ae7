#![no_main]

mvm_fuzz::target!(mvm_fuzz_targets::session);
