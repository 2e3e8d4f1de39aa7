//! The Python module `moshi_mlx.audio_io`: thin classes and functions around the core.

mod echo;
mod live;
mod sound;

use pyo3::prelude::*;
use pyo3::types::PyType;

/// An exception of `moshi_mlx.errors`, by name.
fn error(py: Python<'_>, name: &str, message: String) -> PyErr {
    let class = py
        .import("moshi_mlx.errors")
        .and_then(|module| module.getattr(name))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match class {
        Ok(class) => PyErr::from_type(class, message),
        Err(missing) => missing,
    }
}

/// Lead MLX's matrix products on the CPU to OpenBLAS (crate `cpu_blas`); whether that was done.
#[pyfunction]
fn accelerate_mlx() -> bool {
    #[cfg(target_os = "linux")]
    return cpu_blas::accelerate("libmlx");
    #[cfg(not(target_os = "linux"))]
    false
}

#[pymodule]
fn audio_io(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(accelerate_mlx, module)?)?;
    sound::register(module)?;
    echo::register(module)?;
    live::register(module)
}
