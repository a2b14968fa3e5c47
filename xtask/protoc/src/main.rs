//! The subset of protoc's command line that prost-build uses: `-I DIR`, `-o FILE` (or `--descriptor_set_out=FILE`)
//! and the proto files. Other flags are accepted and have no effect, as they only tune protoc's own output.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use prost::Message;

fn main() -> Result<()> {
    let mut includes: Vec<PathBuf> = Vec::new();
    let mut output: Option<PathBuf> = None;
    let mut files: Vec<PathBuf> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--version" => {
                print_version();
                return Ok(());
            }
            "-I" => includes.push(arguments.next().context("-I needs a folder")?.into()),
            "-o" => output = Some(arguments.next().context("-o needs a file")?.into()),
            _ => {
                if let Some(folder) = argument.strip_prefix("-I").or(argument.strip_prefix("--proto_path=")) {
                    includes.push(folder.into());
                } else if let Some(file) = argument.strip_prefix("--descriptor_set_out=") {
                    output = Some(file.into());
                } else if !argument.starts_with('-') {
                    files.push(argument.into());
                }
            }
        }
    }
    let Some(output) = output else { bail!("no output file: give -o FILE") };
    let descriptors = protox::compile(files, includes).context("compiling the proto files")?;
    std::fs::write(&output, descriptors.encode_to_vec())
        .with_context(|| format!("writing {}", output.display()))
}

fn print_version() {
    println!("libprotoc 29.0");
}
