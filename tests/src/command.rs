//! Commands of the system, run to their end, with errors that say what was run.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use thiserror::Error;

/// A command that could not be run or said no.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("running {command}: {source}")]
    NotRun {
        /// The command line.
        command: String,
        /// Its cause.
        #[source]
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("{command}: {status}: {said}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote, errors first.
        said: String,
    },
}

/// The command as a reader would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command with this on its stdin, and returns whatever came of it.
pub fn output(command: &mut Command, stdin: &[u8]) -> Result<Output, CommandError> {
    let not_run = |command: &Command, source| CommandError::NotRun { command: line(command), source };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| not_run(command, source))?;
    let mut pipe = child.stdin.take();
    // Written beside the reading, so that neither side waits for the other; who does not read its input may do so.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || pipe.take().map(|mut pipe| pipe.write_all(stdin)));
        child.wait_with_output()
    });
    output.map_err(|source| not_run(command, source))
}

/// Runs a command that must succeed, and returns its stdout.
pub fn stdout(command: &mut Command, stdin: &[u8]) -> Result<String, CommandError> {
    let output = output(command, stdin)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    Err(CommandError::Failed {
        command: line(command),
        status: output.status.to_string(),
        said: said.join("\n").trim().to_owned(),
    })
}

/// Runs a command given as one line of words.
pub fn run(words: &str) -> Result<String, CommandError> {
    stdout(&mut parse(words), b"")
}

/// A command from one line of words without quotes.
pub fn parse(words: &str) -> Command {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("false"));
    command.args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_says_what_was_run_and_what_it_said() {
        let error = run("ls /nowhere-at-all").expect_err("there is no such file").to_string();
        assert!(error.starts_with("ls /nowhere-at-all: exit status: 2: "), "{error}");
        assert!(
            run("no-such-command").expect_err("none").to_string().starts_with("running no-such-command: ")
        );
    }

    #[test]
    fn a_command_that_does_not_read_its_input_is_no_error() {
        assert_eq!(stdout(&mut parse("echo hello"), &[b'x'; 1 << 20]).unwrap(), "hello\n");
        assert_eq!(stdout(&mut parse("wc -c"), &[b'x'; 1 << 20]).unwrap().trim(), (1 << 20).to_string());
    }
}
