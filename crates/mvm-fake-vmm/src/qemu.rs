//! QEMU, as far as the trial of KVM goes: it boots a kernel whose file says that KVM boots it.

use crate::quit;
use std::fs;
use std::thread;

pub(crate) fn run(arguments: &[String]) -> ! {
    let mut arguments = arguments
        .iter()
        .skip_while(|argument| *argument != "-kernel");
    let kernel = arguments.nth(1).map(fs::read_to_string);
    match kernel {
        Some(Ok(kernel)) if kernel.contains("KVM boots this") => {
            fs::write(
                "console.log",
                "VFS: Unable to mount root fs on unknown-block(0,0)",
            )
            .unwrap();
            loop {
                thread::park();
            }
        }
        _ => quit("error: failed to set MSR 0x48f to 0x7fffff00036dfb"),
    }
}
