//! The `coordinator` program; everything it does is in the library beside it.

fn main() -> std::process::ExitCode {
    coordinator::main()
}
