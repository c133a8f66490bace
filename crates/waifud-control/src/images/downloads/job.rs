//! The worker of one source: repeats attempts until the image is complete or has failed for good.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use waifud_kit::sync::lock;
use waifud_store::ImageRow;
use waifud_types::{Checksum, Digest};

use super::config::DownloadSettings;
use super::fetch::{self, Failure, Validator, Watcher};
use super::limits::Limits;
use super::partial::Partial;
use super::problems;
use super::reach::Trail;
use super::records::DownloadRecords;
use super::source::{self, Proof, Source};
use crate::ControlError;

/// The maximum number of consecutive attempts without progress.
const ATTEMPTS_WITHOUT_PROGRESS: u32 = 8;
/// The maximum number of attempts if none of them connects to the server: the machine probably has no internet access.
const ATTEMPTS_WITHOUT_CONNECTION: u32 = 5;
/// The bytes that an interrupted attempt must transfer to count as progress.
const PROGRESS_MIN: u64 = 64 << 10;
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// The interval of checks for free space.
const SPACE_PAUSE: Duration = Duration::from_secs(2);

/// The progress of a source; in memory only.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) total: Option<u64>,
    pub(super) checksum: Option<Checksum>,
    pub(super) waiting_for: Option<String>,
}

impl Progress {
    /// The visible progress: percent of the total, or MiB if the total is unknown.
    fn step(&self) -> (u64, Option<u64>, Option<&String>) {
        let done = match self.total {
            Some(total) => self.done.saturating_mul(100) / total.max(1),
            None => self.done >> 20,
        };
        (done, self.total, self.waiting_for.as_ref())
    }
}

struct Job {
    /// Distinguishes the job from earlier ones of the same source.
    number: u64,
    progress: Arc<Mutex<Progress>>,
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// What a worker needs. It calls nothing else: it is driven by the rows of its source.
#[derive(Clone)]
pub(super) struct WorkerContext {
    pub(super) records: DownloadRecords,
    pub(super) settings: DownloadSettings,
    pub(super) stop: CancellationToken,
    /// Names each source that got further.
    pub(super) steps: broadcast::Sender<Digest>,
}

/// The running downloads, one for each source. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Jobs(Arc<JobTable>);

#[derive(Default)]
struct JobTable {
    jobs: Mutex<HashMap<Digest, Job>>,
    numbers: AtomicU64,
}

impl Jobs {
    /// The progress of a source; `None` if no job runs.
    pub(super) fn progress(&self, source: Digest) -> Option<Progress> {
        let jobs = lock(&self.0.jobs);
        let progress = lock(&jobs.get(&source)?.progress).clone();
        Some(progress)
    }

    /// Starts a job for a source unless one is running.
    pub(super) fn ensure(&self, context: &WorkerContext, name: Digest, source: Source) {
        let mut jobs = lock(&self.0.jobs);
        let before = jobs.get(&name).filter(|job| !job.ended.is_cancelled());
        if before.is_some_and(|job| !job.cancel.is_cancelled()) {
            return;
        }
        let before = before.map(|job| job.ended.clone());
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let job = Job {
            number,
            progress: Arc::default(),
            cancel: context.stop.child_token(),
            ended: CancellationToken::new(),
        };
        let worker = Worker {
            context: context.clone(),
            name,
            source,
            progress: Arc::clone(&job.progress),
        };
        let (cancel, ended, table) = (job.cancel.clone(), job.ended.clone(), self.clone());
        jobs.insert(name, job);
        tokio::spawn(async move {
            let _mark_ended = ended.drop_guard();
            if let Some(before) = before {
                before.cancelled().await;
            }
            tokio::select! {
                () = cancel.cancelled() => {
                    // If waifud stops, the partial file is kept and resumed later. Otherwise the download was canceled.
                    if !worker.context.stop.is_cancelled() {
                        worker.context.records.files().discard_partial(name);
                    }
                }
                () = worker.run() => {}
            }
            table.forget(name, number);
            if let Some(source) = worker.next_source().await {
                table.ensure(&worker.context, name, source);
            }
        });
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        lock(&self.0.jobs).len()
    }

    /// Removes an ended job, unless a newer one has replaced it.
    fn forget(&self, source: Digest, number: u64) {
        let mut jobs = lock(&self.0.jobs);
        if jobs.get(&source).is_some_and(|job| job.number == number) {
            jobs.remove(&source);
        }
    }

    /// Cancels the job of a source.
    pub(super) fn cancel(&self, source: Digest) {
        if let Some(job) = lock(&self.0.jobs).get(&source) {
            job.cancel.cancel();
        }
    }
}

struct Worker {
    context: WorkerContext,
    name: Digest,
    source: Source,
    progress: Arc<Mutex<Progress>>,
}

impl Worker {
    async fn run(&self) {
        let mut failures = 0_u32;
        loop {
            let ended = match self.run_attempts().await {
                Ok(Ok(())) => return,
                Ok(Err(problem)) => {
                    self.context.records.files().discard_partial(self.name);
                    self.context
                        .records
                        .record_failure(self.name, problem)
                        .await
                }
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return,
                Err(error) if error.is_disk_full() => self.wait_for_disk_space().await,
                Err(error) => {
                    // The database or the disk failed. The row still says that the download runs, so it continues.
                    let _logged = error.into_problem();
                    self.change(|progress| {
                        progress.waiting_for =
                            Some("waifud's database and image store; retrying".to_owned());
                    });
                    self.pause(failures).await;
                    failures += 1;
                }
            }
        }
    }

    /// The source of a row that was written while this job ended: it was still in the table, so no other was started.
    async fn next_source(&self) -> Option<Source> {
        while !self.context.stop.is_cancelled() {
            match self.context.records.of_source(self.name).await {
                Ok(rows) => {
                    let request = &rows.first()?.request;
                    return source::source(request, &self.context.settings.reach()).ok();
                }
                Err(error) => {
                    tracing::warn!(%error, "reading the downloads of a source failed; retrying");
                }
            }
            tokio::select! {
                () = self.context.stop.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        None
    }

    /// Waits longer after each failure.
    async fn pause(&self, failures: u32) {
        let first = self.context.settings.downloads.pause;
        let pause = first.saturating_mul(2_u32.saturating_pow(failures.min(16)));
        tokio::time::sleep(pause.min(PAUSE_MAX)).await;
    }

    /// Waits for free space. The partial file is kept, and the download resumes when there is space.
    async fn wait_for_disk_space(&self) {
        let first = {
            let mut first = false;
            self.change(|progress| {
                let why = "free space in waifud's state_dir; it continues automatically";
                first = progress.waiting_for.as_deref() != Some(why);
                progress.waiting_for = Some(why.to_owned());
            });
            first
        };
        if first {
            tracing::warn!(source = %problems::shown(&self.source.url), "a download waits for free space");
        }
        tokio::time::sleep(self.context.settings.downloads.pause.max(SPACE_PAUSE)).await;
    }

    /// The inner error is permanent for the source; the outer error is an internal failure.
    async fn run_attempts(&self) -> Result<Result<(), waifud_api::Problem>, ControlError> {
        let path = self.context.records.files().partial(self.name);
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
        let mut attempts = 0;
        let mut connected = partial.length > 0;
        loop {
            let before = partial.length;
            let limits = self.limits();
            if self.source.from_catalog_entry && !connected {
                self.change(|progress| {
                    progress
                        .waiting_for
                        .get_or_insert_with(|| self.connecting());
                });
            }
            let mut no_connection = false;
            let (why, slow) = match self.attempt(&limits, &mut partial, &mut validator).await? {
                Ok(()) => return Ok(Ok(())),
                Err(Failure::Permanent(problem)) => {
                    return Ok(Err(self.visible_problem(&limits, problem)));
                }
                Err(Failure::Temporary(why)) => (why, false),
                Err(Failure::NoConnection(why)) => {
                    no_connection = true;
                    (why, false)
                }
                Err(Failure::TooSlow(why)) => (why, true),
                Err(Failure::DiskFull) => {
                    connected = true;
                    self.wait_for_disk_space().await;
                    continue;
                }
            };
            let progressed = !slow && partial.length >= before.saturating_add(PROGRESS_MIN);
            attempts = if progressed { 0 } else { attempts + 1 };
            connected |= !no_connection;
            // The number of attempts must not show whether a private address accepts connections.
            if !connected && attempts >= ATTEMPTS_WITHOUT_CONNECTION && !self.hides_details(&limits)
            {
                return Ok(Err(problems::no_connection(
                    self.source.from_catalog_entry,
                    attempts,
                    &why,
                )));
            }
            if attempts >= ATTEMPTS_WITHOUT_PROGRESS {
                return Ok(Err(self.visible_problem(
                    &limits,
                    problems::source_unreachable(attempts, &why),
                )));
            }
            tracing::info!(source = %problems::shown(&self.source.url), why, "retrying a download");
            self.change(|progress| {
                progress.waiting_for = Some(if self.hides_details(&limits) {
                    problems::PRIVATE_WAIT.to_owned()
                } else {
                    format!("{why}; retrying")
                });
            });
            self.pause(attempts.saturating_sub(1)).await;
        }
    }

    fn connecting(&self) -> String {
        format!(
            "connecting to {}",
            self.source.url.host_str().unwrap_or("the server")
        )
    }

    /// The settings of the next attempt, with the machine's addresses as they are now.
    fn limits(&self) -> Limits {
        let settings = &self.context.settings;
        Limits {
            reach: settings.reach(),
            trail: Trail::default(),
            settings: settings.clone(),
            disk_space: self.context.records.files().disk_space().clone(),
        }
    }

    /// Whether the details of an attempt may only be in waifud's log.
    fn hides_details(&self, limits: &Limits) -> bool {
        limits.trail.is_private() && !self.source.from_catalog_entry
    }

    /// The problem as shown to users who may read downloads.
    fn visible_problem(
        &self,
        limits: &Limits,
        problem: waifud_api::Problem,
    ) -> waifud_api::Problem {
        if !self.hides_details(limits) {
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
        let complete = match &expected {
            Some(expected) => {
                self.context
                    .records
                    .complete_image(expected.to_string())
                    .await?
            }
            None => None,
        };
        if let Some(image) = complete {
            self.context.records.files().discard_partial(self.name);
            self.context
                .records
                .record_success(self.name, image, expected)
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
                self.context
                    .records
                    .set_validator(self.name, now.0.clone())
                    .await
                    .map_err(|error| match error {
                        full if full.is_full() => Failure::DiskFull,
                        _ => Failure::Temporary("writing to the database failed".to_owned()),
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
            created_at: self.context.records.now(),
        };
        self.context.records.keep_image(partial.path(), row).await?;
        self.context
            .records
            .record_success(self.name, proven.digest, expected)
            .await?;
        Ok(Ok(()))
    }

    async fn known_validator(&self) -> Result<Validator, ControlError> {
        let rows = self.context.records.of_source(self.name).await?;
        Ok(Validator(rows.into_iter().find_map(|row| row.validator)))
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = lock(&self.progress);
        let before = progress.clone();
        change(&mut progress);
        if before.step() != progress.step() {
            let _no_followers = self.context.steps.send(self.name);
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

#[cfg(test)]
mod tests {
    use waifud_api::CreateDownload;
    use waifud_store::{Mode, Store};
    use waifud_types::Incarnation;
    use waifud_types::event::Cause;

    use super::*;
    use crate::env::{SystemClock, SystemEntropy};
    use crate::{Control, ControlConfig};

    #[tokio::test]
    async fn an_ended_job_is_removed() {
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
        assert_eq!(control.downloads().running(), 1);
        let all_ended = async {
            while control.downloads().running() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let deadline = Duration::from_mins(1);
        tokio::time::timeout(deadline, all_ended).await.unwrap();
        assert!(control.downloads().show("a").await.unwrap().error.is_some());
    }
}
