//! The web service of `examples/web` without a guest: on a free port, from a copy of its folder.

use crate::sh::{Cmd, Failure, Result, Tried};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A running busybox httpd, ended when dropped.
pub(super) struct LocalWeb {
    server: Child,
    etc: PathBuf,
}

impl LocalWeb {
    pub(super) fn start(dir: &Path, busybox: &Path) -> Result<Self> {
        let port = free_port()?;
        let (etc, www, run) = (dir.join("etc"), dir.join("www"), dir.join("run"));
        let fault = dir.join("break-web");
        let paths = [
            &www,
            &run,
            &etc.join("integrations.d"),
            &etc.join("probes.d"),
        ];
        for path in paths {
            fs::create_dir_all(path).tried(format!("create {}", path.display()))?;
        }
        copy(
            "www/index.html",
            &www.join("index.html"),
            0o644,
            str::to_owned,
        )?;
        copy("break-web", &fault, 0o755, str::to_owned)?;
        // The page and the port are other ones here.
        let command = format!(
            "WWW='{}' RUN='{}' '{}'",
            www.display(),
            run.display(),
            fault.display()
        );
        for name in [
            "integrations.d/web.json",
            "probes.d/disk.json",
            "probes.d/break-web.json",
        ] {
            copy(&format!("etc/{name}"), &etc.join(name), 0o644, |text| {
                text.replace(":8080/", &format!(":{port}/"))
                    .replace("busybox wget", &format!("'{}' wget", busybox.display()))
                    .replace(
                        r#""command": "break-web""#,
                        &format!(r#""command": "{command}""#),
                    )
            })?;
        }
        let server = Cmd::new(busybox)
            .args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h"])
            .arg(&www);
        eprintln!("\n$ {server} &");
        let server = server.own_group().spawn(Stdio::null())?;
        Ok(Self { server, etc })
    }

    /// The drop-ins for this copy.
    pub(super) fn etc(&self) -> &Path {
        &self.etc
    }
}

impl Drop for LocalWeb {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A port that nothing listens on. Another program may take it before httpd does; the health check
/// then says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").tried("find a free port")?;
    Ok(listener.local_addr().tried("find a free port")?.port())
}

/// Copies a file of the example. The mode is set, since the agent rejects what a group may write.
fn copy(from: &str, to: &Path, mode: u32, change: impl Fn(&str) -> String) -> Result<()> {
    let from = Path::new("examples/web").join(from);
    let text = fs::read_to_string(&from).tried(format!("read {}", from.display()))?;
    fs::write(to, change(&text)).tried(format!("write {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .map_err(|error| Failure(format!("cannot set the mode of {}: {error}", to.display())))
}
