//! One source at work: attempts until the image is here, or it is certain that it will not come.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use waifud_store::{ImageRow, StoreError};
use waifud_types::{Checksum, Digest, Name};

use super::fetch::{self, Failure, Limits, Validator, Watcher};
use super::partial::Partial;
use super::problems;
use super::reach::Trail;
use super::source::{Proof, Source};
use crate::{Control, ControlError};

/// So many attempts in a row may bring next to nothing.
const FRUITLESS: u32 = 8;
/// What an attempt that breaks has to bring, so that a server that sends a few bytes each time is given up.
const FRUIT: u64 = 64 << 10;
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// Between two looks whether there is room.
const ROOM_PAUSE: Duration = Duration::from_secs(2);

/// How far a source is; only in memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
    pub(crate) checksum: Option<Checksum>,
    pub(crate) waiting_for: Option<String>,
}

impl Progress {
    /// What people see change: a hundredth of the whole, or a mebibyte of something without an end.
    fn step(&self) -> (u64, Option<u64>, Option<&String>) {
        let done = match self.total {
            Some(total) => self.done.saturating_mul(100) / total.max(1),
            None => self.done >> 20,
        };
        (done, self.total, self.waiting_for.as_ref())
    }
}

struct Job {
    /// Tells it from an earlier job of the same source.
    number: u64,
    progress: Arc<Mutex<Progress>>,
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// The sources at work.
#[derive(Default)]
pub(crate) struct Jobs {
    jobs: Mutex<HashMap<Digest, Job>>,
    numbers: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    /// How far a source is; `None` when nothing is at work on it.
    pub(crate) fn progress(&self, source: Digest) -> Option<Progress> {
        let jobs = lock(&self.jobs);
        let progress = lock(&jobs.get(&source)?.progress).clone();
        Some(progress)
    }

    /// Sets to work on a source unless somebody is.
    pub(super) fn ensure(&self, control: &Control, name: Digest, source: Source) {
        let mut jobs = lock(&self.jobs);
        let before = jobs.get(&name).filter(|job| !job.ended.is_cancelled());
        if before.is_some_and(|job| !job.cancel.is_cancelled()) {
            return;
        }
        let before = before.map(|job| job.ended.clone());
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let job = Job {
            number,
            progress: Arc::default(),
            cancel: control.shared.stop.child_token(),
            ended: CancellationToken::new(),
        };
        let worker = Worker {
            control: control.clone(),
            name,
            source,
            progress: Arc::clone(&job.progress),
        };
        let (cancel, ended) = (job.cancel.clone(), job.ended.clone());
        jobs.insert(name, job);
        tokio::spawn(async move {
            let _says_so_however_it_ends = ended.drop_guard();
            if let Some(before) = before {
                before.cancelled().await;
            }
            tokio::select! {
                () = cancel.cancelled() => {
                    // waifud stops: what is here is gone on with. Otherwise nobody wants it any more.
                    if !worker.control.shared.stop.is_cancelled() {
                        worker.control.shared.images.discard_partial(name);
                    }
                }
                () = worker.run() => {}
            }
            worker.control.shared.jobs.forget(name, number);
            worker.control.go_on_with(name).await;
        });
    }

    /// A job has ended. One that has taken its place stays.
    fn forget(&self, source: Digest, number: u64) {
        let mut jobs = lock(&self.jobs);
        if jobs.get(&source).is_some_and(|job| job.number == number) {
            jobs.remove(&source);
        }
    }

    /// Nobody wants the source any more.
    pub(super) fn cancel(&self, source: Digest) {
        if let Some(job) = lock(&self.jobs).get(&source) {
            job.cancel.cancel();
        }
    }
}

struct Worker {
    control: Control,
    name: Digest,
    source: Source,
    progress: Arc<Mutex<Progress>>,
}

impl Worker {
    async fn run(&self) {
        let mut failures = 0_u32;
        loop {
            let ended = match self.until_the_end().await {
                Ok(Ok(())) => return,
                Ok(Err(problem)) => {
                    self.control.shared.images.discard_partial(self.name);
                    self.control.download_failed(self.name, problem).await
                }
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return,
                Err(error) if error.is_disk_full() => self.wait_for_disk_space().await,
                Err(error) => {
                    // The database or the disk failed: the row says that it goes on, so it does.
                    let _said_in_the_log = error.into_problem();
                    self.change(|progress| {
                        progress.waiting_for =
                            Some("waifud's database and image store: it is tried again".to_owned());
                    });
                    self.pause(failures).await;
                    failures += 1;
                }
            }
        }
    }

    /// Waits longer after each failure.
    async fn pause(&self, failures: u32) {
        let first = self.control.shared.config.downloads.pause;
        let pause = first.saturating_mul(2_u32.saturating_pow(failures.min(16)));
        tokio::time::sleep(pause.min(PAUSE_MAX)).await;
    }

    /// A full disk is nobody's failure: what came is kept, and it goes on when there is room.
    async fn wait_for_disk_space(&self) {
        let first = {
            let mut first = false;
            self.change(|progress| {
                let why = "room in waifud's state_dir: it goes on by itself when there is some";
                first = progress.waiting_for.as_deref() != Some(why);
                progress.waiting_for = Some(why.to_owned());
            });
            first
        };
        if first {
            tracing::warn!(source = %problems::shown(&self.source.url), "a download waits for room");
        }
        tokio::time::sleep(self.control.shared.config.downloads.pause.max(ROOM_PAUSE)).await;
    }

    /// Inside, a problem that will last; outside, a failure of ours.
    async fn until_the_end(&self) -> Result<Result<(), waifud_api::Problem>, ControlError> {
        let path = self.control.shared.images.partial(self.name);
        let mut validator = self.known_validator().await?;
        let mut partial = match Partial::open(&path).await {
            Ok(partial) => partial,
            Err(error) => {
                return Err(ControlError::io(format!("opening {}", path.display()))(
                    error,
                ));
            }
        };
        if self.source.proof == Proof::HttpsAlone && partial.clear().await.is_err() {
            validator = Validator::default();
        }
        let mut fruitless = 0;
        loop {
            let before = partial.length;
            let limits = self.limits();
            let (why, slow) = match self.attempt(&limits, &mut partial, &mut validator).await? {
                Ok(()) => return Ok(Ok(())),
                Err(Failure::Lasting(problem)) => return Ok(Err(self.told(&limits, problem))),
                Err(Failure::Passing(why)) => (why, false),
                Err(Failure::TooSlow(why)) => (why, true),
                Err(Failure::NoRoom) => {
                    self.wait_for_disk_space().await;
                    continue;
                }
            };
            let fruit = !slow && partial.length >= before.saturating_add(FRUIT);
            fruitless = if fruit { 0 } else { fruitless + 1 };
            if fruitless >= FRUITLESS {
                return Ok(Err(self.told(&limits, problems::gave_up(fruitless, &why))));
            }
            tracing::info!(source = %problems::shown(&self.source.url), why, "a download is tried again");
            self.change(|progress| {
                progress.waiting_for = Some(if self.is_silent_about(&limits) {
                    problems::PRIVATE_WAIT.to_owned()
                } else {
                    format!("{why}; it is tried again")
                });
            });
            self.pause(fruitless.saturating_sub(1)).await;
        }
    }

    /// The settings of the next attempt; the machine's addresses as they are now.
    fn limits(&self) -> Limits {
        let config = &self.control.shared.config;
        Limits {
            reach: super::reach(config),
            trail: Trail::default(),
            proxies: config.downloads.proxies,
            max: config.image_max,
            disk_space: self.control.shared.images.disk_space().clone(),
            silence: config.downloads.silence,
            pace: config.downloads.pace,
        }
    }

    /// Whether what happened in an attempt is for the administrator's log alone.
    fn is_silent_about(&self, limits: &Limits) -> bool {
        limits.trail.is_private() && !self.source.listed_here
    }

    /// The problem as those who may read downloads are told it.
    fn told(&self, limits: &Limits, problem: waifud_api::Problem) -> waifud_api::Problem {
        if !self.is_silent_about(limits) {
            return problem;
        }
        tracing::warn!(
            source = %problems::shown(&self.source.url),
            code = problem.code,
            detail = problem.detail,
            "a download from a private address failed: {}",
            problem.title
        );
        problems::private()
    }

    async fn attempt(
        &self,
        limits: &Limits,
        partial: &mut Partial,
        validator: &mut Validator,
    ) -> Result<Result<(), Failure>, ControlError> {
        let expected = match fetch::expected(&self.source, limits).await {
            Ok(expected) => expected,
            Err(failure) => return Ok(Err(failure)),
        };
        self.change(|progress| progress.checksum.clone_from(&expected));
        if let Some(image) = self.image_that_is_here(expected.as_ref()).await? {
            self.control.shared.images.discard_partial(self.name);
            self.control
                .download_done(self.name, image, expected)
                .await?;
            return Ok(Ok(()));
        }
        let mut learned = None;
        let fetched = fetch::fetch(
            &self.source,
            limits,
            partial,
            validator,
            self,
            async |now: Validator| {
                self.remember(&now).await.map_err(|error| match error {
                    full if full.is_full() => Failure::NoRoom,
                    _ => Failure::Passing("the database can't be written".to_owned()),
                })?;
                learned = Some(now);
                Ok(())
            },
        )
        .await;
        if let Some(now) = learned {
            *validator = now;
        }
        if let Err(failure) = fetched {
            return Ok(Err(failure));
        }
        let proven = match fetch::verify(partial, expected.as_ref()).await {
            Ok(proven) => proven,
            Err(failure) => return Ok(Err(failure)),
        };
        let row = ImageRow {
            digest: proven.digest,
            size: proven.size,
            virtual_size: proven.header.virtual_size,
            created_at: self.control.now(),
        };
        self.control.keep_download(partial.path(), row).await?;
        self.control
            .download_done(self.name, proven.digest, expected)
            .await?;
        Ok(Ok(()))
    }

    /// The image that the checksum names, where it came before and its file is whole.
    async fn image_that_is_here(
        &self,
        expected: Option<&Checksum>,
    ) -> Result<Option<Digest>, ControlError> {
        let Some(expected) = expected.map(ToString::to_string) else {
            return Ok(None);
        };
        let found = self
            .control
            .shared
            .store
            .read(move |tx| {
                let named = match expected.parse::<Digest>() {
                    Ok(digest) => Some(digest),
                    Err(_) => tx.image_with_checksum(&expected)?,
                };
                let Some(digest) = named else {
                    return Ok(None);
                };
                tx.image(digest)
            })
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        let Some(row) = found else {
            return Ok(None);
        };
        let images = &self.control.shared.images;
        let whole = images.is_whole(row.digest, row.size, true).await?;
        Ok(whole.then_some(row.digest))
    }

    async fn known_validator(&self) -> Result<Validator, ControlError> {
        let name = self.name;
        let rows = self
            .control
            .shared
            .store
            .read(move |tx| tx.downloads_from(name))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        Ok(Validator(rows.into_iter().find_map(|row| row.validator)))
    }

    async fn remember(&self, validator: &Validator) -> Result<(), StoreError> {
        let (name, text) = (self.name, validator.0.clone());
        self.control
            .shared
            .store
            .write(move |tx| tx.set_download_validator(name, text.as_deref()))
            .await
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = lock(&self.progress);
        let before = progress.clone();
        change(&mut progress);
        if before.step() != progress.step() {
            let _nobody_watches = self.control.shared.download_steps.send(self.name);
        }
    }
}

impl Watcher for Worker {
    fn progress(&self, done: u64, total: Option<u64>) {
        self.change(|progress| {
            progress.done = done;
            progress.total = total;
            progress.waiting_for = None;
        });
    }
}

/// Names for logs: which templates wait for a source.
pub(super) fn names(rows: &[waifud_store::DownloadRow]) -> Vec<Name> {
    rows.iter().map(|row| row.template.clone()).collect()
}

#[cfg(test)]
mod tests {
    use waifud_api::CreateDownload;
    use waifud_store::{Mode, Store};
    use waifud_types::Incarnation;

    use super::*;
    use crate::ControlConfig;
    use crate::auth::principal::Cause;
    use crate::env::{SystemClock, SystemEntropy};

    #[tokio::test]
    async fn a_source_that_nobody_works_on_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mode = Mode::Threads { readers: 1 };
        let store = Store::open(&dir.path().join("waifud.db"), mode, Incarnation(1)).unwrap();
        let mut config = ControlConfig::new(dir.path().to_owned());
        config.downloads.loopback = true;
        config.downloads.proxies = false;
        config.downloads.pause = Duration::from_millis(1);
        let clock = Arc::new(SystemClock);
        let control = Control::new(store, config, clock, Arc::new(SystemEntropy))
            .await
            .unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a", free.local_addr().unwrap());
        drop(free);
        let request = CreateDownload {
            name: "a".into(),
            url: Some(url),
            checksum: Checksum::from_hex(&"a".repeat(64)),
            ..CreateDownload::default()
        };
        control
            .create_download(request, Cause::system())
            .await
            .unwrap();
        assert_eq!(lock(&control.shared.jobs.jobs).len(), 1);
        let forgotten = async {
            while !lock(&control.shared.jobs.jobs).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let deadline = Duration::from_mins(1);
        tokio::time::timeout(deadline, forgotten).await.unwrap();
        assert!(control.download("a").await.unwrap().error.is_some());
    }
}
