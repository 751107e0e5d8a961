//! The configuration: a YAML file, environment variables and dotted flags. An input is the file, and after a byte
//! of zero the command line, its arguments apart by zeros; those with `RELABEL__` in front are the environment.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use coordinator::config::{load, split_dotted};
use relabel_config::validate;

use crate::{Target, scratch};

pub const TARGET: Target = Target { name: "config", run, seeds: &["configs"], amplification: 4096 };

fn run(input: &[u8]) {
    let mut parts = input.split(|byte| *byte == 0);
    let yaml = parts.next().unwrap_or_default();
    let (env, args): (Vec<&[u8]>, Vec<&[u8]>) = parts.partition(|part| part.starts_with(b"RELABEL__"));
    let env = env.into_iter().map(|variable| {
        let text = String::from_utf8_lossy(variable);
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        (name.to_owned(), value.to_owned())
    });
    let args = args.into_iter().map(|arg| OsString::from_vec(arg.to_vec()));
    let overrides = split_dotted(args).map_or_else(|error| one_line(&error), |(overrides, _)| overrides);

    let folder = scratch().expect("a folder for the file");
    let path = folder.path().join("run.yaml");
    std::fs::write(&path, yaml).expect("the file");
    let loaded = match load(None, Some(&path), env, &overrides) {
        Ok(loaded) => loaded,
        Err(error) => return one_line(&error),
    };
    validate(&loaded.config).expect("what is loaded is valid");

    let text = loaded.to_yaml().expect("a valid configuration has words");
    std::fs::write(&path, &text).expect("the file");
    let again = load(None, Some(&path), std::iter::empty(), &[]);
    let again = again.unwrap_or_else(|error| panic!("what was written is not read: {error}\n{text}"));
    assert_eq!(again.config, loaded.config, "{text}");
}

/// Every refusal is one line.
fn one_line<T: Default>(error: &impl std::fmt::Display) -> T {
    let line = error.to_string();
    assert!(!line.contains('\n'), "more than one line: {line:?}");
    T::default()
}
