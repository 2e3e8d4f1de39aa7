//! The Python module `moshi_mlx.audio_io`: thin classes and functions around the core.

mod echo;
mod live;
mod sound;

use numpy::PyReadonlyArray1;
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

/// A sound given as an array of floats of any size, one-dimensional, or as what NumPy makes such an array of.
fn samples(sound: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    if let Ok(ready) = sound.extract::<PyReadonlyArray1<'_, f32>>() {
        return Ok(ready.as_array().to_vec());
    }
    let py = sound.py();
    let array = py.import("numpy")?.call_method1("asarray", (sound,))?;
    let (dtype, shape) = (array.getattr("dtype")?, array.getattr("shape")?);
    if dtype.getattr("kind")?.extract::<String>()? != "f" || shape.len()? != 1 {
        let message = format!("sound is float32 [samples] in [-1, 1]; {dtype} of shape {shape} was given");
        return Err(error(py, "InputError", message));
    }
    let single = array.call_method1("astype", ("float32",))?;
    Ok(single.extract::<PyReadonlyArray1<'_, f32>>()?.as_array().to_vec())
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
