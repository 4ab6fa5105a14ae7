//! `cargo xtask demo`: a microVM with a web service is booted, looked at, broken, looked at again,
//! and removed.
//!
//! Where no microVM can be had, the agent runs as a plain process with the same drop-ins.

mod stage;
mod web;

use crate::build;
use crate::need::{self, GuestParts};
use crate::sh::{Result, say};
use stage::Stage;
use std::time::Duration;
use web::LocalWeb;

/// The demo's VM.
const VM: &str = "demo";

pub(crate) fn run() -> Result<()> {
    let parts = need::guest_parts();
    let stage = Stage::set(&build::programs()?)?;
    let played = match &parts {
        Ok(parts) => start_vm(&stage, parts).and_then(|()| play(&stage)),
        Err(reason) => {
            say(format!(
                "No microVM can be had here: {reason}\n\nThe agent runs as a plain process instead."
            ));
            start_local(&stage).and_then(|_web| play(&stage))
        }
    };
    // Dropping it would clean up too, but says nothing.
    let cleaned = stage.clear();
    played.and(cleaned)
}

/// Builds the guest of `examples/web` and boots it.
fn start_vm(stage: &Stage, parts: &GuestParts) -> Result<()> {
    say("Build a guest: the agent, busybox, a kernel, and the web service of examples/web.");
    let image = stage.dir().join("image");
    stage
        .mvmctl(["image", "build"])
        .arg("--out")
        .arg(&image)
        .arg("--kernel")
        .arg(&parts.kernel.image)
        .args(["--hostname", VM])
        .args(["--etc", "examples/web/etc"])
        .args(["--add", "examples/web/www:/www"])
        .args(["--add", "examples/web/break-web:/usr/bin/break-web"])
        .args(["--service", "web=httpd -f -p 127.0.0.1:8080 -h /www"])
        .run()?;
    say("Boot it. Without KVM this takes some seconds.");
    stage
        .mvmctl(["vm", "start", VM, "--backend", "qemu", "--image"])
        .arg(&image)
        .run()
}

/// The same service and drop-ins, with the agent and the web server as plain processes.
fn start_local(stage: &Stage) -> Result<LocalWeb> {
    let web = LocalWeb::start(stage.dir(), &need::busybox()?)?;
    say("Start the agent.");
    stage
        .mvmctl(["vm", "start", VM, "--backend", "local", "--etc"])
        .arg(web.etc())
        .run()?;
    Ok(web)
}

/// What is the same in a guest and without one.
fn play(stage: &Stage) -> Result<()> {
    let vm = |verb: &'static str| stage.mvmctl(["vm", verb, VM]);
    say("Is the agent there? Is the service well, and what is there to see?");
    vm("wait")
        .args(["--for", "healthy", "--timeout", "1m"])
        .run()?;
    vm("ping").run()?;
    vm("status").run()?;
    vm("inspect").run()?;

    say("Break the service while somebody watches.");
    let mut events = stage.watch(stage.mvmctl(["vm", "events", VM]))?;
    events.until("watching", |_| true, Duration::from_secs(10))?;
    vm("check").arg("break-web").run()?;
    events.until(
        "`web` turning unhealthy",
        |line| line.contains("unhealthy"),
        Duration::from_secs(30),
    )?;
    drop(events);

    say("The health has turned, and the check says why. The exit code tells scripts.");
    vm("status").run_and_expect(1)
}
