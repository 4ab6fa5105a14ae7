//! TLS: a certificate and its key, from files.

use crate::report::Failure;
use mvm_registry::read_bounded;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

/// The longest file that is read, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// How connections are encrypted now.
#[derive(Debug)]
pub(super) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads both.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and a key that is not the certificate's.
    pub(super) fn read(cert: PathBuf, key: PathBuf) -> Result<Self, Failure> {
        let config = RwLock::new(config(&cert, &key)?);
        Ok(Self { cert, key, config })
    }

    /// Reads both again. Connections that are open stay as they are.
    ///
    /// # Errors
    ///
    /// Those of [`Tls::read`]; then it is as it was.
    pub(super) fn reload(&self) -> Result<(), Failure> {
        let config = config(&self.cert, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&config).into()
    }
}

type Problem = Box<dyn std::error::Error>;

fn config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, Failure> {
    let certs = certificates(cert).map_err(|problem| {
        Failure::usage(format!(
            "cannot read the certificate in {}: {problem}",
            cert.display()
        ))
        .hint("--tls-cert names a file in PEM: `-----BEGIN CERTIFICATE-----` and so on")
    })?;
    let secret = secret(key).map_err(|problem| {
        Failure::usage(format!(
            "cannot read the key in {}: {problem}",
            key.display()
        ))
        .hint("--tls-key names a file in PEM: `-----BEGIN PRIVATE KEY-----` and so on")
    })?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certs, secret)
        });
    let mut config = config.map_err(|error| {
        Failure::usage(format!(
            "{} and {} do not go together: {error}",
            cert.display(),
            key.display()
        ))
        .hint("the key has to be the one of the first certificate in the file")
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let bytes = read_bounded(path, MAX_PEM)?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>()?;
    if certs.is_empty() {
        return Err("there is none in it".into());
    }
    Ok(certs)
}

fn secret(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    Ok(PrivateKeyDer::from_pem_slice(&read_bounded(
        path, MAX_PEM,
    )?)?)
}
