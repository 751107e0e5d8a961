//! Options that a command has of its own where no coordinator gives them.

use clap::{ArgGroup, ArgMatches, Args, Command, FromArgMatches, Id};

/// The options `T` beside a flag `--coordinator`: without it those that are required are, with it none may be given.
#[derive(Debug)]
pub(crate) struct Own<T>(pub(crate) T);

/// The options' group, by which it is told whether any was given: a group of `T`'s has none that `T` flattens.
const GROUP: &str = "own";

impl<T: Args> Args for Own<T> {
    fn group_id() -> Option<Id> {
        Some(GROUP.into())
    }

    fn augment_args(command: Command) -> Command {
        let others: Vec<Id> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
        let command = T::augment_args(command).mut_args(|arg| match others.contains(arg.get_id()) {
            true => arg,
            false if arg.is_required_set() => {
                arg.required(false).required_unless_present("coordinator").conflicts_with("coordinator")
            }
            false => arg.conflicts_with("coordinator"),
        });
        let own = command.get_arguments().map(|arg| arg.get_id().clone()).filter(|id| !others.contains(id));
        let group = ArgGroup::new(GROUP).multiple(true).args(own.collect::<Vec<_>>());
        command.group(group)
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

impl<T: Args> FromArgMatches for Own<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Args)]
    struct Inner {
        #[arg(long)]
        needed: String,
        #[arg(long, default_value_t = 3)]
        number: u32,
    }

    #[derive(Debug, Args)]
    struct Outer {
        #[command(flatten)]
        inner: Inner,
        #[arg(long)]
        flag: bool,
    }

    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    struct Program {
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        own: Option<Own<Outer>>,
        #[arg(long)]
        coordinator: Option<String>,
    }

    #[test]
    fn options_are_ones_own_or_the_coordinators() {
        let own = |flags: &[&str]| Program::try_parse_from(flags).unwrap().own.map(|Own(outer)| outer);
        let given = own(&["--needed", "a", "--json"]).unwrap();
        assert_eq!((given.inner.needed.as_str(), given.inner.number, given.flag), ("a", 3, false));
        assert!(own(&["--coordinator", "h", "--json"]).is_none());
        for wrong in [
            &["--flag"][..],
            &[],
            &["--coordinator", "h", "--flag"],
            &["--coordinator", "h", "--needed", "a"],
        ] {
            assert!(Program::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
