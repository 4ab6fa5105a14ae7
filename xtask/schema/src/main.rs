//! Writes docs/schema and the Python client's shapes of answers: `cargo xtask schema`.

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
    for (name, content) in mvm_schema::files()? {
        write_file(&Path::new("docs/schema").join(name), &content)?;
    }
    let shapes = Path::new("clients/python/src/mvm_agent/_shapes.py");
    write_file(shapes, &mvm_schema::python()?)
}

fn write_file(file: &Path, content: &str) -> Result<(), String> {
    let failed = |error| format!("cannot write {}: {error}", file.display());
    if fs::read_to_string(file).is_ok_and(|old| old == content) {
        eprintln!("unchanged  {}", file.display());
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    fs::write(file, content).map_err(failed)?;
    eprintln!("written    {}", file.display());
    Ok(())
}
