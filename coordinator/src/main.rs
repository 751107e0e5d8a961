//! The `coordinator` program; everything it does is in the library beside it.

fn main() -> std::process::ExitCode {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if let Some(unfit) = relabel_config::unfit_processor(&cpuinfo) {
        eprintln!("error: {unfit}");
        return std::process::ExitCode::FAILURE;
    }
    coordinator::main()
}
