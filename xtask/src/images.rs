//! Test images from local parts, as docker-archives under their ordinary names, so that a manifest from the web finds
//! them: static Rust binaries, Debian's busybox-static, Debian's nginx with the libraries that it links.
//!
//! An image is built again only when one of its files changed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{build, run};

/// One image: its names, what is in it and how it starts.
struct Image {
    file: &'static str,
    tags: &'static [&'static str],
    /// Host path and path in the image.
    files: Vec<(PathBuf, String)>,
    /// Path in the image and its target.
    links: Vec<(String, String)>,
    /// Path in the image and its text.
    texts: Vec<(String, String)>,
    folders: Vec<&'static str>,
    entrypoint: Vec<&'static str>,
    command: Vec<&'static str>,
    ports: &'static [&'static str],
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";

/// What a cluster takes its images from.
pub(crate) struct Images {
    /// docker-archives, to import.
    pub(crate) archives: Vec<PathBuf>,
    /// The folder that `multitool registry` serves.
    pub(crate) registry: PathBuf,
    /// The program `multitool`, static.
    pub(crate) multitool: PathBuf,
}

/// Builds what is missing.
pub(crate) fn build() -> Result<Images> {
    let folder = run::target().join("images");
    std::fs::create_dir_all(&folder).context("making target/images")?;
    let (pause, multitool) = programs()?;
    let images = [pause_image(pause), multitool_image(multitool.clone())?, busybox_image()?, nginx_image()?];
    let archives = images.iter().map(|image| archive(image, &folder)).collect::<Result<Vec<_>>>()?;
    Ok(Images { archives, registry: folder.join("registry"), multitool })
}

/// The static binaries `pause` and `multitool`.
fn programs() -> Result<(PathBuf, PathBuf)> {
    let mut built = build::in_static("images")?;
    let mut take =
        |name: &str| built.remove(name).with_context(|| format!("cargo named no executable for {name}"));
    Ok((take("pause")?, take("multitool")?))
}

fn pause_image(pause: PathBuf) -> Image {
    Image {
        file: "pause",
        tags: &["registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.6"],
        files: vec![(pause, "/pause".to_owned())],
        links: Vec::new(),
        texts: Vec::new(),
        folders: Vec::new(),
        entrypoint: vec!["/pause"],
        command: Vec::new(),
        ports: &[],
    }
}

fn multitool_image(multitool: PathBuf) -> Result<Image> {
    let mut image = busybox_image()?;
    image.file = "multitool";
    image.tags = &[
        "docker.io/library/multitool:1",
        "docker.io/library/multitool:2",
        "docker.io/library/multitool:latest",
    ];
    image.files.push((multitool, "/bin/multitool".to_owned()));
    image.entrypoint = vec!["/bin/multitool"];
    image.command = vec!["serve"];
    image.ports = &["8080/tcp", "8081/tcp", "8082/udp"];
    Ok(image)
}

fn busybox_image() -> Result<Image> {
    let busybox = run::which("busybox").context("busybox is not on this machine")?;
    let applets = run::output(Command::new(&busybox).arg("--list"))?;
    let links = applets
        .lines()
        .filter(|applet| *applet != "busybox")
        .map(|applet| (format!("/bin/{applet}"), "busybox".to_owned()))
        .collect();
    Ok(Image {
        file: "busybox",
        tags: &[
            "docker.io/library/busybox:1.35",
            "docker.io/library/busybox:1.36",
            "docker.io/library/busybox:1.28",
            "docker.io/library/busybox:latest",
        ],
        files: vec![(busybox, "/bin/busybox".to_owned())],
        links,
        texts: vec![
            ("/etc/passwd".to_owned(), PASSWD.to_owned()),
            ("/etc/group".to_owned(), "root:x:0:\n".to_owned()),
        ],
        folders: vec!["/root", "/tmp", "/var", "/home", "/usr/bin"],
        entrypoint: Vec::new(),
        command: vec!["sh"],
        ports: &[],
    })
}

fn nginx_image() -> Result<Image> {
    let nginx = run::which("nginx").context("nginx is not on this machine")?;
    let mut image = busybox_image()?;
    for library in libraries(&nginx)? {
        let name = library.display().to_string();
        image.files.push((library, name));
    }
    image.files.push((nginx, "/usr/sbin/nginx".to_owned()));
    image.files.push((PathBuf::from("/etc/nginx/mime.types"), "/etc/nginx/mime.types".to_owned()));
    image.texts = vec![
        (
            "/etc/passwd".to_owned(),
            format!(
                "{PASSWD}www-data:x:33:33:www-data:/var/www:/bin/false\nnginx:x:101:101:nginx:/nonexistent:/bin/false\n"
            ),
        ),
        ("/etc/group".to_owned(), "root:x:0:\nwww-data:x:33:\nnginx:x:101:\n".to_owned()),
        ("/etc/nginx/nginx.conf".to_owned(), NGINX_CONF.to_owned()),
        ("/etc/nginx/conf.d/default.conf".to_owned(), NGINX_SITE.to_owned()),
        ("/usr/share/nginx/html/index.html".to_owned(), NGINX_PAGE.to_owned()),
    ];
    image.links.push(("/var/log/nginx/access.log".to_owned(), "/dev/stdout".to_owned()));
    image.links.push(("/var/log/nginx/error.log".to_owned(), "/dev/stderr".to_owned()));
    image.folders.extend(["/var/lib/nginx", "/var/cache/nginx", "/run", "/var/log/nginx"]);
    image.file = "nginx";
    image.tags = &[
        "docker.io/library/nginx:1.22",
        "docker.io/library/nginx:1.22.1",
        "docker.io/library/nginx:1.14.2",
        "docker.io/library/nginx:latest",
    ];
    image.command = vec!["nginx", "-g", "daemon off;"];
    image.ports = &["80/tcp"];
    Ok(image)
}

const NGINX_CONF: &str = "user nginx;
worker_processes 1;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
";
const NGINX_SITE: &str = "server {
    listen 80;
    server_name localhost;
    location / { root /usr/share/nginx/html; index index.html; }
}
";
const NGINX_PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head>\
<body><h1>Welcome to nginx!</h1></body></html>\n";

/// What the dynamic linker would load, the linker itself among them.
pub(crate) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = run::output(Command::new("ldd").arg(program))?;
    Ok(listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

fn archive(image: &Image, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{}.tar", image.file));
    let stamp = folder.join(format!("{}.stamp", image.file));
    let layer = layer(image).with_context(|| format!("packing the image {}", image.file))?;
    let layer_digest = hex(&Sha256::digest(&layer));
    let config = config(image, &layer_digest)?;
    let identity = format!("{layer_digest} {}", hex(&Sha256::digest(&config)));
    let published = folder.join("registry/blobs/sha256").join(&layer_digest).exists();
    if published && path.exists() && std::fs::read_to_string(&stamp).is_ok_and(|old| old == identity) {
        return Ok(path);
    }
    let manifest = json!([{"Config": "config.json", "RepoTags": image.tags, "Layers": ["layer.tar"]}]);
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    append(&mut builder, "config.json", &config, 0o644)?;
    append(&mut builder, "layer.tar", &layer, 0o644)?;
    let bytes = builder.into_inner().context("finishing the archive")?;
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    publish(image, &folder.join("registry"), &layer, &config)?;
    std::fs::write(&stamp, identity).with_context(|| format!("writing {}", stamp.display()))?;
    run::say(&format!("    image {} ({})", image.tags.join(", "), path.display()));
    Ok(path)
}

/// Lays the image out as the registry serves it: blobs by digest, and a tag's digest.
fn publish(image: &Image, folder: &Path, layer: &[u8], config: &[u8]) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).context("making the registry's folder")?;
    let add = |bytes: &[u8], kind: &str| -> Result<serde_json::Value> {
        let digest = hex(&Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes).context("writing a blob")?;
        Ok(json!({"mediaType": kind, "size": bytes.len(), "digest": format!("sha256:{digest}")}))
    };
    let config = add(config, "application/vnd.oci.image.config.v1+json")?;
    let layer = add(layer, "application/vnd.oci.image.layer.v1.tar")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = add(manifest.to_string().as_bytes(), kind)?;
    for tag in image.tags {
        let (repository, version) = tag.rsplit_once(':').context("a tag without a version")?;
        let (_, repository) = repository.split_once('/').context("a tag without a registry")?;
        let path = folder.join("tags").join(repository);
        std::fs::create_dir_all(&path).context("making a repository's folder")?;
        std::fs::write(path.join(version), manifest["digest"].as_str().unwrap_or_default())
            .context("writing a tag")?;
    }
    Ok(())
}

fn config(image: &Image, layer_digest: &str) -> Result<Vec<u8>> {
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let ports: serde_json::Map<String, serde_json::Value> =
        image.ports.iter().map(|port| ((*port).to_owned(), json!({}))).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "ExposedPorts": ports,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    });
    serde_json::to_vec(&config).context("encoding the image's configuration")
}

/// The image's only layer; the same input gives the same bytes.
fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut folders: BTreeSet<String> = image.folders.iter().map(|folder| (*folder).to_owned()).collect();
    let paths = image.files.iter().map(|(_, path)| path).chain(image.links.iter().map(|(path, _)| path));
    for path in paths.chain(image.texts.iter().map(|(path, _)| path)) {
        folders.extend(Path::new(path).parent().map(|parent| parent.display().to_string()));
    }
    for folder in folders.clone() {
        folders.extend(Path::new(&folder).ancestors().map(|ancestor| ancestor.display().to_string()));
    }
    for folder in folders.iter().filter(|folder| *folder != "/") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "/tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        builder
            .append_data(&mut header, folder.trim_start_matches('/'), std::io::empty())
            .context("a folder")?;
    }
    for (source, path) in &image.files {
        let bytes = std::fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        append(&mut builder, path, &bytes, 0o755)?;
    }
    for (path, text) in &image.texts {
        append(&mut builder, path, text.as_bytes(), 0o644)?;
    }
    for (path, target) in &image.links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder.append_link(&mut header, path.trim_start_matches('/'), target).context("a link")?;
    }
    builder.into_inner().context("finishing the layer")
}

fn append(builder: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    builder
        .append_data(&mut header, path.trim_start_matches('/'), bytes)
        .with_context(|| format!("adding {path}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
