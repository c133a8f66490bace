//! A wrapper of libvirt's C interface for events, which the binding crate does not support.
//!
//! libvirt delivers events from an event loop that the program must run. We run libvirt's default loop on one thread,
//! which is started once per process and never ends. Callbacks run on that thread. They convert their arguments into a
//! `DomainEvent` and send it to a channel, and never block, call libvirt or panic into C.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;
use virt_sys as sys;
use waifud_types::InstanceId;

use super::state;
use crate::{DomainEvent, DomainEventKind};

/// The receiver of the events of one connection.
pub(super) struct Sink {
    /// Set when the connection is lost.
    pub(super) lost: AtomicBool,
    /// The subscribers.
    pub(super) events: broadcast::Sender<DomainEvent>,
    /// Wakes the thread that reconnects.
    pub(super) wake: mpsc::Sender<()>,
}

impl Sink {
    fn emit(&self, id: Uuid, kind: DomainEventKind) {
        let id = InstanceId::from_uuid(id);
        // There may be no subscriber; events are only hints.
        let _no_subscriber = self.events.send(DomainEvent { id, kind });
    }

    pub(super) fn resync(&self) {
        self.emit(Uuid::nil(), DomainEventKind::Resync);
    }
}

/// Starts the event loop, once. Must be called before the first connection is opened.
pub(super) fn start_loop() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // Otherwise the library prints every error to stderr.
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl()?;
            let spawned = std::thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(|| {
                    loop {
                        if virt::event::event_run_default_impl().is_err() {
                            // This is not known to happen. The pause prevents a busy loop if it does.
                            std::thread::park_timeout(Duration::from_millis(100));
                        }
                    }
                });
            match spawned {
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::error!(%error, "cannot start the thread for libvirt's events");
                    Err(Error::last_error())
                }
            }
        })
        .clone()
}

/// The registrations of one connection; they end when this is dropped.
pub(super) struct Registered {
    connect: sys::virConnectPtr,
    callbacks: Vec<c_int>,
}

// SAFETY: a connection pointer may be used from any thread (libvirt's "Thread safety" page), and the owner of a
// `Registered` also owns the connection, see `connection::OpenConnection`.
unsafe impl Send for Registered {}
// SAFETY: as above; shared references give no access at all.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers for all events of the interface.
    pub(super) fn new(connect: &Connect, sink: &Arc<Sink>) -> Result<Self, Error> {
        let mut registered = Self {
            connect: connect.as_ptr(),
            callbacks: Vec::new(),
        };
        // SAFETY: (for all of them) libvirt calls a callback with the arguments of the function type that belongs to the
        // event's number; `virConnectDomainEventGenericCallback` is the common type to cast to, by its documentation.
        let casts = unsafe {
            [
                (
                    sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    std::mem::transmute::<Lifecycle, Generic>(on_lifecycle),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
                    std::mem::transmute::<IoError, Generic>(on_io_error),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                    std::mem::transmute::<Agent, Generic>(on_agent),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                    std::mem::transmute::<DeviceRemoved, Generic>(on_device_removed),
                ),
                // Its function type is the common one.
                (sys::VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot as Generic),
            ]
        };
        for (event, callback) in casts {
            let opaque = into_opaque(sink);
            let event = c_int::try_from(event).unwrap_or(c_int::MAX);
            // SAFETY: the connection is open (it is borrowed), a null domain means all of them, the opaque pointer is
            // what `free_sink` takes back, and libvirt calls that once, when the registration ends.
            let id = unsafe {
                sys::virConnectDomainEventRegisterAny(
                    registered.connect,
                    std::ptr::null_mut(),
                    event,
                    Some(callback),
                    opaque,
                    Some(free_sink),
                )
            };
            if id < 0 {
                let error = Error::last_error();
                // SAFETY: the registration failed, so libvirt did not take the pointer.
                unsafe { free_sink(opaque) };
                return Err(error);
            }
            registered.callbacks.push(id);
        }
        let opaque = into_opaque(sink);
        // SAFETY: as for the registrations above.
        let failed = unsafe {
            sys::virConnectRegisterCloseCallback(
                registered.connect,
                Some(on_close),
                opaque,
                Some(free_sink),
            )
        };
        if failed < 0 {
            let error = Error::last_error();
            // SAFETY: the registration failed, so libvirt did not take the pointer.
            unsafe { free_sink(opaque) };
            return Err(error);
        }
        Ok(registered)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Errors are ignored: on a lost connection the daemon cannot be notified, but the callbacks are freed.
        // SAFETY: the connection outlives this value (`connection::OpenConnection` closes it afterwards).
        unsafe {
            for id in &self.callbacks {
                sys::virConnectDomainEventDeregisterAny(self.connect, *id);
            }
            sys::virConnectUnregisterCloseCallback(self.connect, Some(on_close));
        }
    }
}

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type Lifecycle =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type IoError = unsafe extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    *const c_char,
    *const c_char,
    c_int,
    *const c_char,
    *mut c_void,
);
type DeviceRemoved =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type Agent = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);

/// Converts a reference to the sink into a pointer that libvirt holds.
fn into_opaque(sink: &Arc<Sink>) -> *mut c_void {
    Arc::into_raw(Arc::clone(sink)).cast_mut().cast()
}

/// Converts the pointer back and drops its reference.
///
/// # Safety
/// `opaque` came from `into_opaque` and is not used afterwards.
unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: by this function's own contract.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Sink>()) });
}

/// Calls a function with the sink behind the pointer. A panic ends here.
///
/// # Safety
/// `opaque` came from `into_opaque` and has not been freed, which holds while libvirt calls back.
unsafe fn with_sink(opaque: *mut c_void, work: impl FnOnce(&Sink)) {
    // SAFETY: by this function's own contract; the reference that libvirt holds keeps the sink alive meanwhile.
    let sink = unsafe { &*opaque.cast_const().cast::<Sink>() };
    if catch_unwind(AssertUnwindSafe(|| work(sink))).is_err() {
        sink.lost.store(true, Ordering::SeqCst);
    }
}

/// The instance of the event's domain.
///
/// # Safety
/// `domain` is a domain that libvirt passed to a callback which has not returned yet.
unsafe fn id_of(domain: sys::virDomainPtr) -> Option<Uuid> {
    let mut bytes = [0; sys::VIR_UUID_BUFLEN as usize];
    // SAFETY: the domain is valid by contract, the buffer has the length that the function writes.
    let failed = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    (failed == 0).then(|| Uuid::from_bytes(bytes))
}

/// Emits an event of the domain to the sink behind the pointer.
///
/// # Safety
/// The contracts of `id_of` and `with_sink` hold.
unsafe fn emit(domain: sys::virDomainPtr, kind: DomainEventKind, opaque: *mut c_void) {
    // SAFETY: by this function's own contract.
    unsafe {
        if let Some(id) = id_of(domain) {
            with_sink(opaque, |sink| sink.emit(id, kind));
        }
    }
}

/// # Safety
/// Only libvirt may call this, as registered in `Registered::new`.
unsafe extern "C" fn on_lifecycle(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt passes a valid domain and the pointer of the registration.
    unsafe {
        if let Some(kind) = state::lifecycle(event, detail) {
            emit(domain, kind, opaque);
        }
    }
    0
}

/// # Safety
/// Only libvirt may call this, as registered in `Registered::new`.
unsafe extern "C" fn on_io_error(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _path: *const c_char,
    _alias: *const c_char,
    _action: c_int,
    _reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a valid domain and the pointer of the registration.
    unsafe {
        // If the error paused the domain, there is a lifecycle event as well.
        emit(domain, DomainEventKind::Changed, opaque);
    }
}

/// # Safety
/// Only libvirt may call this, as registered in `Registered::new`.
unsafe extern "C" fn on_device_removed(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a valid domain and the pointer of the registration.
    unsafe {
        emit(domain, DomainEventKind::Changed, opaque);
    }
}

/// # Safety
/// Only libvirt may call this, as registered in `Registered::new`.
unsafe extern "C" fn on_agent(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a valid domain and the pointer of the registration.
    unsafe {
        emit(domain, DomainEventKind::AgentChanged, opaque);
    }
}

/// # Safety
/// Only libvirt may call this, as registered in `Registered::new`.
unsafe extern "C" fn on_reboot(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a valid domain and the pointer of the registration.
    unsafe {
        emit(domain, DomainEventKind::Rebooted, opaque);
    }
}

/// # Safety
/// Only libvirt may call this, as registered in `Registered::new`.
unsafe extern "C" fn on_close(_connect: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt passes the pointer of the registration.
    unsafe {
        with_sink(opaque, |sink| {
            sink.lost.store(true, Ordering::SeqCst);
            sink.resync();
            // The thread has ended if the hypervisor was dropped.
            let _thread_may_have_ended = sink.wake.send(());
        });
    }
}
