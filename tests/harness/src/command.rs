//! Commands and what they said.

use std::io::Write;
use std::process::{Command, Stdio};

/// A finished command.
#[derive(Debug)]
pub struct Run {
    pub shown: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, with `input` on standard input.
#[track_caller]
pub fn run(command: &mut Command, input: &str) -> Run {
    let shown = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("starting `{shown}`: {error}"));
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let text = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that does not read its input closes it.
        let _ = stdin.write_all(text.as_bytes());
    });
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("waiting for `{shown}`: {error}"));
    writer.join().expect("the writer does not panic");
    Run {
        shown,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Run {
    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "`{}` ended with {}:\n{}{}", self.shown, self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// Everything that a command said which must fail.
    #[track_caller]
    pub fn fails(self) -> String {
        let said = format!("{}{}", self.stdout, self.stderr);
        assert!(self.code != 0, "`{}` should have failed, and said:\n{said}", self.shown);
        said
    }
}
