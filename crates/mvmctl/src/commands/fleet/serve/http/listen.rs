//! Which addresses are listened on, and who may ask there.

use super::listener::Listener;
use super::passed;
use super::tls::Tls;
use crate::report::Failure;
use mvm_registry::{Home, read_bounded};
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};

/// The socket in `$MVM_HOME` at which `mvmctl fleet status` asks.
pub(crate) const SOCKET: &str = "fleet.sock";

/// The longest token that is read, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Where is listened.
#[derive(Debug, clap::Args)]
pub(crate) struct Listen {
    /// Where to listen; systemd's sockets are taken in its place
    #[arg(
        long = "listen",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9152"
    )]
    address: SocketAddr,

    /// What is asked for in the header `Authorization: Bearer …`: the content of a file
    #[arg(long, value_name = "FILE")]
    bearer_token_file: Option<PathBuf>,

    /// The certificate, with those that lead from it to one that clients trust, in PEM: TLS alone is
    /// spoken then
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Listen beyond loopback although anybody may then ask, or overhear
    #[arg(long)]
    insecure: bool,

    /// The address that /sd tells Prometheus, where it is not the one that /sd was asked at
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    advertise: Option<String>,

    /// A label of this host for /sd
    #[arg(long, value_name = "KEY=VALUE", value_parser = host_label)]
    host_label: Vec<(String, String)>,
}

fn host_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is asked for")?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if key.is_empty() || !key.chars().all(is_word) || key.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err("a label's name has letters, digits and _, and begins with no digit".into());
    }
    if key.starts_with("__") {
        return Err("names that begin with __ are Prometheus' own".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err("HOST:PORT is asked for, an IPv6 address in brackets".into()),
    }
}

/// What is listened on.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(super) doors: Vec<Listener>,
    pub(super) tls: Option<Tls>,
    /// The socket of this user's own commands.
    pub(super) own: UnixListener,
    pub(super) token_file: Option<PathBuf>,
    pub(super) token: Option<Arc<str>>,
    pub(super) advertise: Option<String>,
    pub(super) labels: Vec<(String, String)>,
}

impl Listen {
    /// Opens the sockets.
    ///
    /// # Errors
    ///
    /// An address that cannot be listened on, or that anybody could ask at.
    pub(crate) fn open(self, home: &Home) -> Result<Listeners, Failure> {
        let mut keys = BTreeSet::new();
        if let Some((key, _)) = self.host_label.iter().find(|(key, _)| !keys.insert(key)) {
            let failure = Failure::usage(format!("--host-label: `{key}` is given twice"));
            return Err(failure.hint("a host has one of each"));
        }
        let token = self.bearer_token_file.as_deref().map(token).transpose()?;
        let tls = self.tls_cert.zip(self.tls_key);
        let tls = tls.map(|(cert, key)| Tls::read(cert, key)).transpose()?;
        let is_secure = self.insecure || (tls.is_some() && token.is_some());
        let mut doors = passed::listeners()?;
        if doors.is_empty() {
            doors.push(Listener::Tcp(bind(self.address)?));
        }
        for door in &doors {
            if let Some(address) = door.address()
                && !address.ip().is_loopback()
                && !is_secure
            {
                return Err(Failure::usage(format!(
                    "{address} is reached from other machines, and anybody there could ask and overhear"
                ))
                .hint(
                    "listen on loopback, or give --tls-cert, --tls-key and --bearer-token-file; \
                     --insecure does without",
                ));
            }
        }
        Ok(Listeners {
            doors,
            tls,
            own: own_socket(home.root())?,
            token_file: self.bearer_token_file,
            token,
            advertise: self.advertise,
            labels: self.host_label,
        })
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    bound.map_err(|error| {
        Failure::failed(format!("cannot listen on {address}: {error}"))
            .hint("--listen names another address and port")
    })
}

/// Listens for this user's own commands. Whoever serves this fleet holds its lock, so a socket that is
/// there is a dead one's.
fn own_socket(home: &Path) -> Result<UnixListener, Failure> {
    let path = home.join(SOCKET);
    let open = || -> io::Result<UnixListener> {
        let listener = mvm_vmm::socket::listen(home, SOCKET)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        UnixListener::from_std(listener)
    };
    open().map_err(|error| Failure::failed(format!("cannot listen on {}: {error}", path.display())))
}

/// The token in a file.
pub(super) fn token(path: &Path) -> Result<Arc<str>, Failure> {
    let read = || -> io::Result<Arc<str>> {
        let bytes = read_bounded(path, MAX_TOKEN)?;
        let token = bytes.trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Err(io::Error::other(
                "a token is one word of printable ASCII characters",
            ));
        }
        Ok(String::from_utf8_lossy(token).into())
    };
    read().map_err(|error| {
        Failure::usage(format!(
            "cannot read the token in {}: {error}",
            path.display()
        ))
        .hint("`openssl rand -hex 32` makes one")
    })
}

impl Listeners {
    /// Where is listened, in words.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.doors.iter().map(move |door| match door.address() {
            Some(address) => format!("{scheme}://{address}"),
            None => "a Unix socket that was passed".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prometheus_would_not_take_is_refused() {
        for good in ["rack=r7", "_a1=", "zone=a=b"] {
            host_label(good).unwrap();
        }
        for bad in [
            "rack",
            "=x",
            "a b=c",
            "1a=x",
            "__address__=y",
            "a-b=c",
            "ü=x",
        ] {
            assert!(host_label(bad).is_err(), "{bad}");
        }
        for good in ["a.example:9952", "[::1]:9952", "10.0.0.1:1"] {
            host_and_port(good).unwrap();
        }
        for bad in ["a.example", ":9952", "a:", "a:x", "a:65536"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
