//! Keys of tokens: one signs, several verify, so that a key can be replaced while tokens of the old one are about.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::{pem::Pem, prelude::FromDer as _, public_key::PublicKey, x509::SubjectPublicKeyInfo};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("no key in the PEM text")]
    None,
    #[error("{0}")]
    Unusable(String),
}

fn unusable(error: impl std::fmt::Display) -> KeyError {
    KeyError::Unusable(error.to_string())
}

/// A public key that tokens may be signed with.
pub(super) struct VerifyingKey {
    /// As upstream's: the SHA-256 of the SubjectPublicKeyInfo.
    pub(super) id: String,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
    /// RFC 7517.
    pub(super) jwk: Value,
}

impl VerifyingKey {
    /// Every key of a PEM text: public keys, private keys and certificates.
    ///
    /// # Errors
    /// When a block is none of these, or the text holds none.
    pub(super) fn parse_all(pem: &str) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(pem.as_bytes()) {
            let block = block.map_err(unusable)?;
            let der = match block.label.as_str() {
                "PUBLIC KEY" => block.contents.clone(),
                "CERTIFICATE" => block.parse_x509().map_err(unusable)?.public_key().raw.to_vec(),
                "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" => {
                    KeyPair::from_pem(&pem_text(&block)).map_err(unusable)?.subject_public_key_info()
                }
                "EC PARAMETERS" => continue,
                other => return Err(KeyError::Unusable(format!("a {other} block is no key"))),
            };
            keys.push(Self::from_der(&der)?);
        }
        if keys.is_empty() { Err(KeyError::None) } else { Ok(keys) }
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(der));
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(unusable)?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (algorithm, key, parameters) = match info.parsed().map_err(unusable)? {
            PublicKey::EC(point) => {
                let coordinates = point.data().strip_prefix(&[4]).unwrap_or_default();
                let (x, y) = coordinates.split_at(coordinates.len() / 2);
                let (algorithm, curve) = match x.len() {
                    32 => (Algorithm::ES256, "P-256"),
                    48 => (Algorithm::ES384, "P-384"),
                    _ => return Err(unusable("the curve of the key is neither P-256 nor P-384")),
                };
                let (x, y) = (encode(x), encode(y));
                let key = DecodingKey::from_ec_components(&x, &y).map_err(unusable)?;
                (algorithm, key, json!({"kty": "EC", "crv": curve, "x": x, "y": y}))
            }
            PublicKey::RSA(rsa) => {
                let strip = |bytes: &[u8]| -> Vec<u8> {
                    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
                };
                let (n, e) = (strip(rsa.modulus), strip(rsa.exponent));
                let key = DecodingKey::from_rsa_raw_components(&n, &e);
                (Algorithm::RS256, key, json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)}))
            }
            _ => return Err(unusable("the key is neither ECDSA nor RSA")),
        };
        let name = algorithm_name(algorithm);
        let mut jwk = json!({"use": "sig", "kid": id, "alg": name});
        for (field, value) in parameters.as_object().into_iter().flatten() {
            jwk[field] = value.clone();
        }
        Ok(Self { id, algorithm, key, jwk })
    }
}

pub(super) fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        _ => "RS256",
    }
}

/// The private key that tokens are signed with.
pub(super) struct SigningKey {
    pub(super) id: String,
    pub(super) algorithm: Algorithm,
    pub(super) key: EncodingKey,
}

impl SigningKey {
    /// # Errors
    /// When the text is not a P-256, P-384 or RSA private key.
    pub(super) fn parse(pem: &str) -> Result<Self, KeyError> {
        let public = VerifyingKey::parse_all(pem)?.remove(0);
        let bytes = pem.as_bytes();
        let key = match public.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(bytes),
            _ => EncodingKey::from_ec_pem(bytes),
        };
        Ok(Self { id: public.id, algorithm: public.algorithm, key: key.map_err(unusable)? })
    }
}

fn pem_text(block: &Pem) -> String {
    let label = &block.label;
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(&block.contents))
}
