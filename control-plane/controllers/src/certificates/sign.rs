//! Signs certificates with the cluster's CA: the request's subject, key and names, the usages that the API object lists,
//! and a life of the signer's choosing. No IO, no clock.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use rcgen::{KeyPair, SigningKey};
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::parse_x509_pem;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag};

use super::request::{Name, Request};

const LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
const LIFE_MIN: Duration = Duration::from_secs(600);
/// Certificates begin this long ago, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Shorter lives are not shortened further by what a certificate begins early.
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// Usages with the bit of the key usage extension that they set.
const KEY_USAGES: [(&str, usize); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Usages with the last number of their OID below 1.3.6.1.5.5.7.3.
const EXTENDED_USAGES: [(&str, u64); 10] = [
    ("any", 0),
    ("server auth", 1),
    ("client auth", 2),
    ("code signing", 3),
    ("email protection", 4),
    ("s/mime", 4),
    ("ipsec end system", 5),
    ("ipsec tunnel", 6),
    ("ipsec user", 7),
    ("timestamping", 8),
];
const OCSP_SIGNING: (&str, u64) = ("ocsp signing", 9);

/// The CA as a signer of requests.
pub struct Signer {
    key: KeyPair,
    /// The algorithm of its signatures, DER.
    algorithm: Vec<u8>,
    /// Its subject, DER.
    issuer: Vec<u8>,
    key_identifier: Option<Vec<u8>>,
    not_after: Timestamp,
}

impl Signer {
    /// A signer from the CA's certificate and key, both PEM.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(certificate_pem: &str, key_pem: &str) -> Result<Self, String> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| format!("the CA's key: {error}"))?;
        let (_, pem) = parse_x509_pem(certificate_pem.as_bytes())
            .map_err(|error| format!("the CA's certificate: {error}"))?;
        let certificate = pem.parse_x509().map_err(|error| format!("the CA's certificate: {error}"))?;
        let key_identifier =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
                _ => None,
            });
        let seconds = certificate.validity().not_after.timestamp();
        let not_after = Timestamp::from_second(seconds).map_err(|error| error.to_string())?;
        let algorithm = algorithm(&key).ok_or("the CA's key is of a kind that cannot sign")?;
        Ok(Self {
            key,
            algorithm,
            issuer: certificate.subject().as_raw().to_vec(),
            key_identifier,
            not_after,
        })
    }

    /// How long a certificate lives when `asked` seconds are asked for.
    pub fn life(asked: Option<i32>) -> Duration {
        let Some(asked) = asked else { return LIFE_MAX };
        Duration::from_secs(u64::try_from(asked).unwrap_or(0)).clamp(LIFE_MIN, LIFE_MAX)
    }

    /// The signed certificate, PEM.
    ///
    /// # Errors
    /// A usage that is not known.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        life: Duration,
        serial: [u8; 16],
        now: Timestamp,
    ) -> Result<String, String> {
        let (bits, extended) = split(usages)?;
        let not_before = now - BACKDATE;
        let end = if life < SHORT { now + life } else { now + life - BACKDATE };
        let not_after = end.min(self.not_after);
        let body = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
                // A positive number of at most 16 octets.
                writer.next().write_bigint_bytes(&positive(serial), true);
                writer.next().write_der(&self.algorithm);
                writer.next().write_der(&self.issuer);
                writer.next().write_sequence(|writer| {
                    writer.next().write_der(&time(not_before));
                    writer.next().write_der(&time(not_after));
                });
                writer.next().write_der(&request.subject);
                writer.next().write_der(&request.public_key);
                writer.next().write_tagged(Tag::context(3), |writer| {
                    self.extensions(writer, request, &bits, &extended);
                });
            });
        });
        let signature = self.key.sign(&body).map_err(|error| error.to_string())?;
        let certificate = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&body);
                writer.next().write_der(&self.algorithm);
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Ok(pem(&certificate))
    }

    fn extensions(&self, writer: DERWriter<'_>, request: &Request, bits: &[usize], extended: &[u64]) {
        writer.write_sequence(|writer| {
            if let Some(last) = bits.iter().max() {
                let mut octets = vec![0_u8; last / 8 + 1];
                bits.iter().for_each(|bit| octets[bit / 8] |= 0x80 >> (bit % 8));
                let content = yasna::construct_der(|writer| writer.write_bitvec_bytes(&octets, last + 1));
                extension(writer.next(), &[2, 5, 29, 15], true, &content);
            }
            if !extended.is_empty() {
                let content = yasna::construct_der(|writer| {
                    writer.write_sequence(|writer| {
                        for number in extended {
                            let oid: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, *number];
                            let oid = if *number == 0 { &[2, 5, 29, 37, 0] } else { oid };
                            writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
                        }
                    });
                });
                extension(writer.next(), &[2, 5, 29, 37], false, &content);
            }
            let nothing = yasna::construct_der(|writer| writer.write_sequence(|_| {}));
            extension(writer.next(), &[2, 5, 29, 19], true, &nothing);
            if let Some(identifier) = &self.key_identifier {
                let content = yasna::construct_der(|writer| {
                    writer.write_sequence(|writer| {
                        writer.next().write_tagged_implicit(Tag::context(0), |w| w.write_bytes(identifier));
                    });
                });
                extension(writer.next(), &[2, 5, 29, 35], false, &content);
            }
            if !request.names.is_empty() {
                extension(writer.next(), &[2, 5, 29, 17], false, &names(&request.names));
            }
        });
    }
}

fn extension(writer: DERWriter<'_>, oid: &[u64], critical: bool, content: &[u8]) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(content);
    });
}

fn names(names: &[Name]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            for name in names {
                let (tag, octets) = match name {
                    Name::Email(text) => (1, text.as_bytes()),
                    Name::Dns(text) => (2, text.as_bytes()),
                    Name::Uri(text) => (6, text.as_bytes()),
                    Name::Ip(octets) => (7, octets.as_slice()),
                };
                writer.next().write_tagged_implicit(Tag::context(tag), |writer| writer.write_bytes(octets));
            }
        });
    })
}

/// The bits and the numbers of usages, each once, in order.
fn split(usages: &[String]) -> Result<(Vec<usize>, Vec<u64>), String> {
    let (mut bits, mut extended, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for usage in usages {
        let known = EXTENDED_USAGES.iter().chain([&OCSP_SIGNING]).find(|(name, _)| name == usage);
        if let Some((_, bit)) = KEY_USAGES.iter().find(|(name, _)| name == usage) {
            bits.push(*bit);
        } else if let Some((_, number)) = known {
            extended.push(*number);
        } else {
            unknown.push(format!("{usage:?}"));
        }
    }
    if !unknown.is_empty() {
        return Err(format!("unrecognized usage values: [{}]", unknown.join(" ")));
    }
    bits.sort_unstable();
    bits.dedup();
    extended.sort_unstable();
    extended.dedup();
    Ok((bits, extended))
}

fn algorithm(key: &KeyPair) -> Option<Vec<u8>> {
    let known: [(&rcgen::SignatureAlgorithm, &[u64], bool); 4] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, &[1, 2, 840, 10045, 4, 3, 2], false),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &[1, 2, 840, 10045, 4, 3, 3], false),
        (&rcgen::PKCS_ED25519, &[1, 3, 101, 112], false),
        (&rcgen::PKCS_RSA_SHA256, &[1, 2, 840, 113549, 1, 1, 11], true),
    ];
    let (_, oid, has_null) = known.into_iter().find(|(algorithm, ..)| *algorithm == key.algorithm())?;
    Some(yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
            if has_null {
                writer.next().write_null();
            }
        });
    }))
}

fn positive(mut serial: [u8; 16]) -> [u8; 16] {
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

/// A time as RFC 5280, 4.1.2.5 writes it: two digits of the year until 2049, then four.
fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(TimeZone::UTC);
    let (tag, text) = if at.year() < 2050 {
        (0x17, at.strftime("%y%m%d%H%M%SZ").to_string())
    } else {
        (0x18, at.strftime("%Y%m%d%H%M%SZ").to_string())
    };
    let mut der = vec![tag, u8::try_from(text.len()).expect("at most 15 characters")];
    der.extend(text.bytes());
    der
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// When a certificate, PEM, ends.
pub fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (_, pem) = parse_x509_pem(certificate).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}
