//! Encrypted, and with systemd's sockets.

use crate::server::{Fleet, LONG};
use mvm_fake_fleet::Behaviour;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const IDLE: Behaviour = Behaviour::Idle(Duration::from_secs(100));
const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fleet/tls/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fleet/tls/key.pem");
const OTHER_KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fleet/tls/other-key.pem");

#[test]
fn beyond_loopback_with_tls_and_a_token() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let token = fleet.write("token", "s3cret");
    let args = format!("--tls-cert {CERT} --tls-key {KEY} --bearer-token-file {token}");
    let mut server = fleet.serve_on("0.0.0.0:0", &args).ready();
    server.address = server.address.replace("0.0.0.0", "127.0.0.1");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(CERT).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut stream = StreamOwned::new(client, stream);
    stream
        .write_all(b"GET /v1/fleet HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer s3cret\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    // A server that just closes is no better than one that says so.
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"vms\":1"), "{answer}");
    // Without TLS nothing is said.
    let mut plain = TcpStream::connect(&server.address).unwrap();
    plain.set_read_timeout(Some(LONG)).unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[test]
fn certificates_that_cannot_be_used_are_refused() {
    let fleet = Fleet::new();
    for (cert, key, words) in [
        (CERT, OTHER_KEY, "do not go together"),
        (KEY, KEY, "cannot read the certificate"),
        (CERT, CERT, "cannot read the key"),
        ("/nowhere", KEY, "cannot read the certificate"),
    ] {
        let args = format!("fleet serve --listen 127.0.0.1:0 --tls-cert {cert} --tls-key {key}");
        let ran = fleet.mvmctl(&args).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{said}");
        assert!(said.contains(words) && said.contains("hint"), "{said}");
    }
}

#[test]
fn a_socket_that_was_passed_is_listened_on() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // As systemd starts it: the socket is descriptor 3.
    let shell = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
    let mvmctl = fleet.mvmctl("fleet serve --listen 127.0.0.1:1");
    let mut command = Command::new("sh");
    command
        .args(["-c", shell])
        .arg(mvmctl.get_program())
        .args(mvmctl.get_args());
    for (name, value) in mvmctl.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let server = fleet.spawn(command.stdin(OwnedFd::from(listener))).ready();
    assert_eq!(server.address, address, "and not what --listen says");
    assert_eq!(server.get("/v1/fleet").json()["vms"], 1);
}
