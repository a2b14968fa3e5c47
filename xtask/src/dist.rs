//! `cargo xtask dist`: release binaries with the BPF object inside, systemd units, the licence, in one archive.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{build, run};

const SERVER_UNIT: &str = "[Unit]
Description=Seaway control plane: apiserver, scheduler and controllers
Documentation=https://kubernetes.io/docs/reference/
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart=/usr/local/bin/seaway-server all --data-dir /var/lib/seaway/server $SEAWAY_SERVER_FLAGS
EnvironmentFile=-/etc/seaway/server.env
Restart=always
RestartSec=1
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
";

const AGENT_UNIT: &str = "[Unit]
Description=Seaway agent: the node's network and kubelet
After=network-online.target containerd.service
Wants=network-online.target containerd.service

[Service]
Type=exec
ExecStart=/usr/local/bin/seaway-agent $SEAWAY_AGENT_FLAGS
EnvironmentFile=-/etc/seaway/agent.env
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
LimitNOFILE=65536
LimitMEMLOCK=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
";

pub(crate) fn dist(output: &Path) -> Result<()> {
    let binaries = build::binaries(true)?;
    let output = run::root().join(output);
    std::fs::create_dir_all(&output).with_context(|| format!("making {}", output.display()))?;
    let name = format!("seaway-{}-linux-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let path = output.join(format!("{name}.tar"));
    let file = std::fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
    let mut archive = tar::Builder::new(file);
    for (binary, from) in &binaries {
        archive
            .append_path_with_name(from, format!("{name}/bin/{binary}"))
            .with_context(|| format!("packing {}", from.display()))?;
    }
    for (licence, packed) in [("Apache-2.0.txt", "LICENSE"), ("MIT.txt", "LICENSE-MIT-ebpf")] {
        archive
            .append_path_with_name(run::root().join(".license").join(licence), format!("{name}/{packed}"))
            .context("packing a licence")?;
    }
    for (unit, text) in [("seaway-server.service", SERVER_UNIT), ("seaway-agent.service", AGENT_UNIT)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        archive
            .append_data(&mut header, format!("{name}/systemd/{unit}"), text.as_bytes())
            .with_context(|| format!("packing {unit}"))?;
    }
    archive.finish().context("finishing the archive")?;
    run::say(&format!("{}", path.display()));
    Ok(())
}
