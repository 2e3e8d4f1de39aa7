//! Python's view of devices and of a conversation's sound.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList};

use crate::devices::{self, DeviceFault, Direction, Port, Selection};
use crate::echo::{EchoCanceller, EchoOptions};
use crate::engine::{Engine, Options, samples_in};
use crate::frame::{FRAME_SIZE, SAMPLE_RATE};
use crate::hosts::system_hosts;
use crate::stats::{self, Value};

/// Python's signals are looked at this often while a call blocks.
const SLICE: Duration = Duration::from_millis(100);

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(list_devices, module)?)?;
    module.add_class::<AudioIO>()
}

fn device_error(py: Python<'_>, fault: DeviceFault) -> PyErr {
    super::error(py, "DeviceError", fault.to_string())
}

fn port_dict<'py>(py: Python<'py>, port: &Port) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("channels", port.channels)?;
    dict.set_item("rate", port.rate)?;
    dict.set_item("rates", &port.rates)?;
    dict.set_item("default", port.default)?;
    Ok(dict)
}

/// Lists the microphones and speakers of every sound system there is.
#[pyfunction]
fn list_devices(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let devices = py.detach(|| devices::list(&system_hosts()));
    let list = PyList::empty(py);
    for device in devices {
        let dict = PyDict::new(py);
        dict.set_item("number", device.number)?;
        dict.set_item("host", device.host)?;
        dict.set_item("name", device.name)?;
        dict.set_item("id", device.id)?;
        dict.set_item("input", device.input.map(|p| port_dict(py, &p)).transpose()?)?;
        dict.set_item("output", device.output.map(|p| port_dict(py, &p)).transpose()?)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// `None` is the default device, `False` is no device, a number or a part of a name is that device.
fn selection(py: Python<'_>, value: Option<Bound<'_, PyAny>>) -> PyResult<Selection> {
    let Some(value) = value else {
        return Ok(Selection::Default);
    };
    if let Ok(on) = value.cast::<PyBool>() {
        return Ok(if on.is_true() { Selection::Default } else { Selection::Off });
    }
    if let Ok(number) = value.extract::<usize>() {
        return Ok(Selection::Number(number));
    }
    if let Ok(text) = value.extract::<String>() {
        return Ok(text.parse().map_or(Selection::Named(text), Selection::Number));
    }
    let message =
        "a device is a number from list_devices(), a part of a name, None (default) or False (none)";
    Err(super::error(py, "InputError", message.into()))
}

/// The microphone and the speaker of a conversation.
#[pyclass(module = "moshi_mlx.audio_io")]
struct AudioIO {
    engine: Mutex<Option<Arc<Engine>>>,
}

#[pymethods]
impl AudioIO {
    #[new]
    #[pyo3(signature = (
        input = None, output = None, echo_cancel = true, max_lag_ms = 400.0, noise_suppression = false
    ))]
    fn new(
        py: Python<'_>,
        input: Option<Bound<'_, PyAny>>,
        output: Option<Bound<'_, PyAny>>,
        echo_cancel: bool,
        max_lag_ms: f64,
        noise_suppression: bool,
    ) -> PyResult<Self> {
        let (input, output) = (selection(py, input)?, selection(py, output)?);
        if !(80.0..=60_000.0).contains(&max_lag_ms) {
            let message = format!("max_lag_ms is {max_lag_ms}; it must be from 80 (one frame) to 60000");
            return Err(super::error(py, "InputError", message));
        }
        let both = input != Selection::Off && output != Selection::Off;
        let echo = EchoOptions { noise_suppression, ..EchoOptions::default() };
        let canceller = EchoCanceller::new(SAMPLE_RATE, echo)
            .map_err(|e| super::error(py, "InputError", e.to_string()))?;
        let options = Options {
            canceller: (echo_cancel && both).then(|| Box::new(canceller)),
            input,
            output,
            max_lag: samples_in(max_lag_ms),
            hosts: Arc::new(system_hosts),
        };
        let engine = py.detach(|| Engine::start(options)).map_err(|fault| device_error(py, fault))?;
        Ok(Self { engine: Mutex::new(Some(Arc::new(engine))) })
    }

    /// Waits for the next frame from the microphone.
    #[pyo3(signature = (timeout = 1.0))]
    fn read<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let engine = self.engine(py)?;
        if !engine.has_input() {
            return Err(super::error(py, "InputError", "there is nothing to read: input is False".into()));
        }
        let mut found = None;
        let came = wait(py, &engine, timeout, |slice| {
            found = engine.read(slice);
            found.is_some()
        })?;
        match found {
            Some(frame) if came => Ok(frame.pcm.into_pyarray(py)),
            _ => Err(PyTimeoutError::new_err(format!("no frame came within {timeout} s"))),
        }
    }

    /// Hands a frame to the speaker; with a timeout, waits first until it would not queue up.
    #[pyo3(signature = (pcm, timeout = None))]
    fn write(&self, py: Python<'_>, pcm: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<()> {
        let engine = self.engine(py)?;
        if !engine.has_output() {
            return Err(super::error(py, "InputError", "there is nowhere to write: output is False".into()));
        }
        let pcm = super::samples(pcm)?;
        if pcm.len() > FRAME_SIZE {
            let message =
                format!("{} samples were given; write at most {FRAME_SIZE} (80 ms) at a time", pcm.len());
            return Err(super::error(py, "InputError", message));
        }
        if let Some(timeout) = timeout
            && !wait(py, &engine, timeout, |slice| engine.wait_writable(slice))?
        {
            return Err(PyTimeoutError::new_err(format!("the speaker took nothing within {timeout} s")));
        }
        py.detach(|| engine.write(&pcm));
        Ok(())
    }

    /// Everything that is measured, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let engine = self.engine(py)?;
        let dict = PyDict::new(py);
        for (name, value) in py.detach(|| stats::collect(&engine)) {
            match value {
                Value::Count(n) => dict.set_item(name, n)?,
                Value::Number(x) => dict.set_item(name, x)?,
                Value::Text(text) => dict.set_item(name, text)?,
            }
        }
        Ok(dict)
    }

    /// What happened to the devices since the last call.
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let engine = self.engine(py)?;
        let list = PyList::empty(py);
        for event in engine.events() {
            let dict = PyDict::new(py);
            dict.set_item("kind", event.kind)?;
            let side = if event.direction == Direction::Input { "input" } else { "output" };
            dict.set_item("side", side)?;
            dict.set_item("message", event.message)?;
            list.append(dict)?;
        }
        Ok(list)
    }

    /// Frames dropped because the model was too late, since the start.
    #[getter]
    fn dropped_frames(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.engine(py)?.dropped())
    }

    /// Forgets what was heard so far.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        self.engine(py)?.clear();
        Ok(())
    }

    /// Closes the devices; later calls raise DeviceError, a second `close` does nothing.
    fn close(&self, py: Python<'_>) {
        let engine = self.slot().take();
        py.detach(|| {
            if let Some(engine) = engine {
                engine.close();
            }
        });
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.close(py);
    }
}

impl Drop for AudioIO {
    /// Closing takes a while, in which other Python threads go on.
    fn drop(&mut self) {
        Python::try_attach(|py| self.close(py));
    }
}

impl AudioIO {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Engine>>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self, py: Python<'_>) -> PyResult<Arc<Engine>> {
        self.slot().clone().ok_or_else(|| closed(py))
    }
}

fn closed(py: Python<'_>) -> PyErr {
    super::error(py, "DeviceError", "this AudioIO is closed; make a new one".into())
}

/// Tries until it works or `timeout` seconds were waited for, without Python's lock; Ctrl-C and `close` end it.
///
/// The time is counted in slices that were really waited for: a machine that sleeps and wakes up has not timed out.
fn wait(
    py: Python<'_>,
    engine: &Engine,
    timeout: f64,
    mut attempt: impl FnMut(Duration) -> bool + Send,
) -> PyResult<bool> {
    let mut left = Duration::from_secs_f64(if timeout.is_finite() { timeout.clamp(0.0, 1e6) } else { 1e6 });
    loop {
        let slice = SLICE.min(left);
        if py.detach(|| attempt(slice)) {
            return Ok(true);
        }
        py.check_signals()?;
        if engine.is_closed() {
            return Err(closed(py));
        }
        left -= slice;
        if left.is_zero() {
            return Ok(false);
        }
    }
}
