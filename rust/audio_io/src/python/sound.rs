//! Python's view of sound files and resampling.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::resample::{self, ResampleError};
use crate::sound_file;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_sound, module)?)?;
    module.add_function(wrap_pyfunction!(resample_batch, module)?)?;
    module.add_class::<Resampler>()
}

fn input_error(py: Python<'_>, error: ResampleError) -> PyErr {
    super::error(py, "InputError", error.to_string())
}

/// A sound as Python sees it: float32 [channels, samples], and samples per second.
type PySound<'py> = (Bound<'py, PyArray2<f32>>, u32);

#[derive(FromPyObject)]
enum Source<'py> {
    Bytes(Bound<'py, PyBytes>),
    Path(PathBuf),
}

/// Reads a sound file (WAV, FLAC, MP3, OGG/Vorbis, AAC/M4A) from a path or from bytes.
#[pyfunction]
#[pyo3(signature = (source, partial = false))]
fn read_sound<'py>(py: Python<'py>, source: Source<'py>, partial: bool) -> PyResult<PySound<'py>> {
    let sound = match source {
        Source::Bytes(bytes) => {
            let bytes = bytes.as_bytes().to_vec();
            py.detach(|| sound_file::read_bytes(bytes, partial))
        }
        Source::Path(path) => py.detach(|| sound_file::read_path(&path, partial)),
    };
    let sound = sound.map_err(|e| super::error(py, "AudioFileError", e.to_string()))?;
    let shape = [sound.channels.len(), sound.channels[0].len()];
    let flat: Vec<f32> = sound.channels.concat();
    Ok((flat.into_pyarray(py).reshape(shape)?, sound.rate))
}

/// Converts a whole sound to another rate: `round(len * to / from)` samples, aligned with the input.
#[pyfunction]
#[pyo3(name = "resample")]
fn resample_batch<'py>(
    py: Python<'py>,
    x: &Bound<'_, PyAny>,
    from_rate: u32,
    to_rate: u32,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let x = super::samples(x)?;
    let y = py.detach(|| resample::resample(&x, from_rate, to_rate));
    Ok(y.map_err(|e| input_error(py, e))?.into_pyarray(py))
}

/// Converts a stream to another rate, any number of samples at a time.
#[pyclass(module = "moshi_mlx.audio_io")]
struct Resampler {
    core: Mutex<resample::Resampler>,
    from_rate: u32,
    to_rate: u32,
}

#[pymethods]
impl Resampler {
    #[new]
    fn new(py: Python<'_>, from_rate: u32, to_rate: u32) -> PyResult<Self> {
        let core = resample::Resampler::new(from_rate, to_rate).map_err(|e| input_error(py, e))?;
        Ok(Self { core: Mutex::new(core), from_rate, to_rate })
    }

    /// Converts the next samples; gives all that can be known by now.
    fn process<'py>(&self, py: Python<'py>, x: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let x = super::samples(x)?;
        let mut y = Vec::new();
        let done = py.detach(|| self.core().process(&x, &mut y));
        done.map_err(|e| input_error(py, e))?;
        Ok(y.into_pyarray(py))
    }

    /// Gives the stream's last samples and starts anew.
    fn flush<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let mut y = Vec::new();
        self.core().flush(&mut y).map_err(|e| input_error(py, e))?;
        Ok(y.into_pyarray(py))
    }

    /// How late the output is, in output samples.
    #[getter]
    fn delay(&self) -> usize {
        self.core().delay().round() as usize
    }

    fn __repr__(&self) -> String {
        format!("Resampler({}, {})", self.from_rate, self.to_rate)
    }
}

impl Resampler {
    fn core(&self) -> MutexGuard<'_, resample::Resampler> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
