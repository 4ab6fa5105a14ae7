#![no_main]

mvm_fuzz::target!(mvm_fuzz_agent::dev_fuzz::agent_unpack);
