//! The `packer` program; see [`packer`] for what it does.

fn main() -> std::process::ExitCode {
    packer::cli::main()
}
