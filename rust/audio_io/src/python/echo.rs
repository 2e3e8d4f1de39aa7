//! Python's view of the echo canceller.

use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::echo::{self, EchoError, EchoOptions};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<EchoCanceller>()
}

fn input_error(py: Python<'_>, error: EchoError) -> PyErr {
    super::error(py, "InputError", error.to_string())
}

/// Takes what was played out of what the microphone heard, any number of samples at a time.
#[pyclass(module = "moshi_mlx.audio_io")]
struct EchoCanceller {
    core: Mutex<echo::EchoCanceller>,
    sample_rate: u32,
}

#[pymethods]
impl EchoCanceller {
    #[new]
    #[pyo3(signature = (sample_rate = 24_000, high_pass = false, noise_suppression = false))]
    fn new(py: Python<'_>, sample_rate: u32, high_pass: bool, noise_suppression: bool) -> PyResult<Self> {
        let options = EchoOptions { high_pass, noise_suppression };
        let core = echo::EchoCanceller::new(sample_rate, options).map_err(|e| input_error(py, e))?;
        Ok(Self { core: Mutex::new(core), sample_rate })
    }

    /// The microphone's next samples without the echo of those played at the same time, `delay` samples late.
    fn process<'py>(
        &self,
        py: Python<'py>,
        mic: &Bound<'_, PyAny>,
        played: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let mut mic = super::samples(mic)?;
        let played = super::samples(played)?;
        let done = py.detach(|| self.core().process(&mut mic, &played));
        done.map_err(|e| input_error(py, e))?;
        Ok(mic.into_pyarray(py))
    }

    /// How late the output is, in samples.
    #[getter]
    fn delay(&self) -> usize {
        self.core().delay()
    }

    /// How far the loudspeaker's clock is from the microphone's, in parts per million.
    #[getter]
    fn drift_ppm(&self) -> f64 {
        self.core().drift_ppm()
    }

    fn __repr__(&self) -> String {
        format!("EchoCanceller({})", self.sample_rate)
    }
}

impl EchoCanceller {
    fn core(&self) -> MutexGuard<'_, echo::EchoCanceller> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
