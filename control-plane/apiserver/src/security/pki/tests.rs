use std::{fs, os::unix::fs::PermissionsExt};

use super::*;

fn names() -> ServerNames {
    ServerNames {
        advertise_address: "10.89.0.10".parse().unwrap(),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        cluster_domain: "cluster.local".to_owned(),
        extra: vec!["lab.example".to_owned()],
    }
}

fn load(folder: &Path) -> Result<Pki, PkiError> {
    Pki::load_or_create(folder, &names(), "https://127.0.0.1:6443")
}

#[test]
fn the_serving_certificate_has_all_names() {
    let expected = [
        "10.89.0.10",
        "10.96.0.1",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "lab.example",
        "localhost",
    ];
    assert_eq!(names().sans().into_iter().collect::<Vec<_>>(), expected);
    let v6 = ServerNames { service_cidrs: vec!["fd00:96::/112".parse().unwrap()], ..names() };
    assert!(v6.sans().contains("fd00:96::1"));
}

#[test]
fn key_material_is_made_once_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let first = load(folder.path()).unwrap();
    let files =
        ["ca.key", "apiserver.key", "kubelet-client.key", "sa.key", "admin.key", "../admin.kubeconfig"];
    for file in files {
        let mode = fs::metadata(folder.path().join("pki").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    for file in ["ca.crt", "apiserver.crt", "kubelet-client.crt", "sa.pub"] {
        assert!(folder.path().join("pki").join(file).exists(), "{file}");
    }
    let second = load(folder.path()).unwrap();
    assert_eq!(first.ca.certificate_pem(), second.ca.certificate_pem());
    assert!(first.serving == second.serving && first.kubelet_client == second.kubelet_client);
    assert_eq!(first.service_account_key_pem, second.service_account_key_pem);
}

#[test]
fn a_certificate_is_issued_anew_when_its_names_change_or_its_end_is_near() {
    let folder = tempfile::tempdir().unwrap();
    let pki = load(folder.path()).unwrap();
    let more = ServerNames { extra: vec!["other.example".to_owned()], ..names() };
    let changed = Pki::load_or_create(folder.path(), &more, "https://127.0.0.1:6443").unwrap();
    assert!(changed.serving != pki.serving && changed.kubelet_client == pki.kubelet_client);
    let spec = CertificateSpec {
        common_name: "x".into(),
        sans: more.sans(),
        server: true,
        ..CertificateSpec::default()
    };
    let good =
        |now: i64| pki.ca.still_good(&changed.serving.certificate_pem, &changed.serving.key_pem, &spec, now);
    let now = jiff::Timestamp::now().as_second();
    let day = 24 * 3600;
    assert!(good(now) && good(now + 300 * day));
    assert!(!good(now + 340 * day) && !good(now + 400 * day));
    let other = Ca::generate("other").unwrap();
    let other = Ca::from_pem(&other.certificate_pem, &other.key_pem).unwrap();
    let foreign = other.issue(&spec).unwrap();
    assert!(!pki.ca.still_good(&foreign.certificate_pem, &foreign.key_pem, &spec, now));
    assert!(!pki.ca.still_good(&changed.serving.certificate_pem, &pki.serving.key_pem, &spec, now));
}

#[test]
fn half_a_ca_or_a_damaged_one_is_an_error_that_names_the_file_and_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    load(folder.path()).unwrap();
    let key = folder.path().join("pki/ca.key");
    let saved = fs::read_to_string(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let error = load(folder.path()).map(drop).unwrap_err().to_string();
    assert!(error.contains("ca.key"), "{error}");
    assert!(!key.exists());
    let other = Ca::generate("other").unwrap().key_pem;
    for content in ["", "garbage", &saved[..saved.len() / 2], &other] {
        fs::write(&key, content).unwrap();
        let error = load(folder.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains("pki"), "{error}");
        assert_eq!(fs::read_to_string(&key).unwrap(), content);
    }
    fs::write(&key, saved).unwrap();
    load(folder.path()).unwrap();
}

#[test]
fn certificates_and_kubeconfigs_are_signed_offline_by_the_same_ca() {
    let folder = tempfile::tempdir().unwrap();
    let spec = CertificateSpec {
        common_name: "system:node:n1".into(),
        organization: "system:nodes".into(),
        sans: ["n1".to_owned(), "10.89.0.11".to_owned()].into(),
        client: true,
        server: true,
    };
    let out = folder.path().join("n1");
    let error = issue_certificate(folder.path(), &spec, &out).unwrap_err().to_string();
    assert!(error.contains("ca.crt") && error.contains("--data-dir"), "{error}");
    let pki = load(folder.path()).unwrap();
    issue_certificate(folder.path(), &spec, &out).unwrap();
    assert_eq!(fs::read_to_string(out.join("ca.crt")).unwrap(), pki.ca.certificate_pem());
    let pem = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let now = jiff::Timestamp::now().as_second();
    assert!(pki.ca.still_good(&pem("tls.crt"), &pem("tls.key"), &spec, now));
    let file = folder.path().join("n1.kubeconfig");
    issue_kubeconfig(folder.path(), &spec, "https://10.89.0.10:6443", &file).unwrap();
    let parsed: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(parsed["clusters"][0]["cluster"]["server"], "https://10.89.0.10:6443");
    assert_eq!(parsed["current-context"], parsed["contexts"][0]["name"]);
    assert_eq!(parsed["contexts"][0]["context"]["user"], "system:node:n1");
    let data = |value: &serde_json::Value| {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(
        data(&parsed["clusters"][0]["cluster"]["certificate-authority-data"]),
        pki.ca.certificate_pem()
    );
    let user = &parsed["users"][0]["user"];
    assert!(pki.ca.still_good(
        &data(&user["client-certificate-data"]),
        &data(&user["client-key-data"]),
        &spec,
        now
    ));
}

#[test]
fn a_name_that_no_certificate_can_hold_is_an_error() {
    let made = Ca::generate("ca").unwrap();
    let ca = Ca::from_pem(&made.certificate_pem, &made.key_pem).unwrap();
    let spec = CertificateSpec {
        common_name: "x".into(),
        sans: ["n\u{f6}".to_owned()].into(),
        ..client_spec("x", "")
    };
    assert!(ca.issue(&spec).map(drop).unwrap_err().to_string().contains('x'));
}
