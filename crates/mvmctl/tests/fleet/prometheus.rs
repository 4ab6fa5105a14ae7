//! Debian's Prometheus, which scrapes a fleet.

use crate::server::LONG;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a GET comes to within some seconds.
pub(crate) fn get(address: &str, path: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        // As long as KEDA waits by default.
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    Ok((status.ok_or("no status")?, body.to_owned()))
}

/// Prometheus, ended when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Discovers that server, and scrapes what it finds each 200 ms.
    pub(crate) fn of(program: &Path, server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs:\n\
             - job_name: mvm\n  http_sd_configs:\n  - url: http://{server}/sd\n    refresh_interval: 1s\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address: port.to_string(),
            _folder: folder,
        }
    }

    /// The results of a query: labels and value.
    pub(crate) fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let mut escaped = String::new();
        for byte in query.bytes() {
            write!(escaped, "%{byte:02x}").unwrap();
        }
        let began = Instant::now();
        let answer = loop {
            match get(&self.address, &format!("/api/v1/query?query={escaped}")) {
                Ok((200, body)) => break body,
                // It is starting.
                other => assert!(
                    began.elapsed() < LONG && !matches!(other, Ok((400..=499, _))),
                    "{query}: {other:?}"
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        // A body in pieces: what is between the sizes is one line of JSON.
        let start = answer.find('{').unwrap();
        let end = answer.rfind('}').unwrap();
        let body: Value = serde_json::from_str(&answer[start..=end]).unwrap();
        assert_eq!(body["status"], "success", "{query}: {body}");
        let results = body["data"]["result"].as_array().unwrap();
        let pair = |one: &Value| {
            (
                one["metric"].clone(),
                one["value"][1].as_str().unwrap().parse().unwrap(),
            )
        };
        results.iter().map(pair).collect()
    }

    /// Waits until a query has such results.
    pub(crate) fn until(
        &self,
        query: &str,
        is_so: impl Fn(&[(Value, f64)]) -> bool,
    ) -> Vec<(Value, f64)> {
        let began = Instant::now();
        loop {
            let results = self.query(query);
            if is_so(&results) {
                return results;
            }
            assert!(began.elapsed() < LONG, "{query}: {results:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where it is; a test without it is left out where none is required.
pub(crate) fn program() -> Option<PathBuf> {
    let program = std::env::var_os("MVM_TEST_PROMETHEUS").map(PathBuf::from);
    assert!(
        program.is_some() || std::env::var_os("CI").is_none(),
        "MVM_TEST_PROMETHEUS names the program; `cargo xtask test` sets it"
    );
    program
}
