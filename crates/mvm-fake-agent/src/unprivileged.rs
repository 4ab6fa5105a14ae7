//! What others may not do, tried as root too.

/// Runs it on a thread that has given up what lets root open and enter everything.
pub fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut own = rustix::thread::capabilities(None).unwrap();
            own.effective = rustix::thread::CapabilitySet::empty();
            rustix::thread::set_capabilities(None, own).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}
