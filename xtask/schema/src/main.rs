//! Writes docs/schema: `cargo xtask schema`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("schema: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), String> {
    let dir = Path::new("docs/schema");
    let failed = |error| format!("cannot write {}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(failed)?;
    for (name, content) in mvm_schema::files()? {
        let file = dir.join(name);
        if fs::read_to_string(&file).is_ok_and(|old| old == content) {
            eprintln!("unchanged  {}", file.display());
        } else {
            fs::write(&file, content).map_err(failed)?;
            eprintln!("written    {}", file.display());
        }
    }
    Ok(())
}
