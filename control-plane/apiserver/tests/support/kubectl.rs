//! kubectl as it is installed, against a test's server.

use apiserver::security::pki::{Kubeconfig, client_spec, write_kubeconfig};

use super::TestServer;

/// Runs kubectl against the server; `None` where there is no kubectl.
pub async fn kubectl(server: &TestServer, arguments: &[&str]) -> Option<(bool, String)> {
    let issued = server.ca.issue(&client_spec("admin", "system:masters")).unwrap();
    let kubeconfig = Kubeconfig {
        server: &format!("https://{}", server.address),
        ca_pem: server.ca.certificate_pem(),
        user: "admin",
        client: &issued,
    };
    let home = server.folder.path().to_owned();
    let path = home.join("kubeconfig");
    write_kubeconfig(&path, &kubeconfig).unwrap();
    let mut command = std::process::Command::new("kubectl");
    command.env("HOME", &home).env("KUBECONFIG", &path).current_dir(&home).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: kubectl is not installed, so nothing was tried with it");
            None
        }
        output => {
            let output = output.unwrap();
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
    }
}
