//! What is answered, rendered once per tick and only when somebody asks.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::body::Bytes;
use overlaywatch_core::diagnose::Status;
use overlaywatch_core::record::Recording;
use overlaywatch_core::report::NodeReport;
use tokio::sync::OnceCell;

use super::health::Health;
use super::{metrics, text};
use crate::published::{Publication, Published};

/// The pages of one published value.
#[derive(Debug, Default)]
pub(super) struct Pages {
    published: Option<Arc<Published>>,
    health: OnceLock<Health>,
    health_json: OnceLock<Page>,
    health_text: OnceLock<Page>,
    metrics: OnceLock<Page>,
    report: OnceLock<Page>,
    snapshot: OnceCell<Page>,
}

/// A rendered body, or what kept it from being rendered.
pub(super) type Page = Result<Bytes, String>;

impl Pages {
    /// The tick that they are of; none before the first.
    pub(super) fn tick(&self) -> Option<u64> {
        self.published.as_ref().map(|published| published.tick)
    }

    /// The verdict in one word.
    pub(super) fn status(&self) -> Status {
        self.published.as_ref().map_or(Status::Unknown, |published| published.diagnosis.status)
    }

    fn health(&self) -> &Health {
        self.health.get_or_init(|| match &self.published {
            Some(published) => Health::new(&published.snapshot, &published.diagnosis),
            None => Health::starting(),
        })
    }

    pub(super) fn health_json(&self) -> Page {
        self.health_json.get_or_init(|| json(self.health())).clone()
    }

    pub(super) fn health_text(&self) -> Page {
        self.health_text
            .get_or_init(|| Ok(text::health(self.health(), text::Paint::Plain).into()))
            .clone()
    }

    pub(super) fn metrics(&self) -> Page {
        self.metrics
            .get_or_init(|| {
                let page = metrics::render(self.published.as_deref());
                page.map(Bytes::from).map_err(|error| error.to_string())
            })
            .clone()
    }

    /// None before the first tick.
    pub(super) fn report(&self) -> Option<Page> {
        let published = self.published.as_ref()?;
        let render = || json(&NodeReport::new(&published.snapshot, &published.diagnosis));
        Some(self.report.get_or_init(render).clone())
    }

    /// None before the first tick. A recording of a large node takes long to
    /// make, so that is done beside the loop that sends probes, once for all who ask.
    pub(super) async fn snapshot(&self) -> Option<Page> {
        let published = self.published.as_ref()?;
        let make = || async {
            let published = Arc::clone(published);
            let made = tokio::task::spawn_blocking(move || {
                Recording::new(published.before.as_deref(), &published.snapshot).to_json()
            });
            match made.await {
                Ok(Ok(text)) => Ok(text.into()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        };
        Some(self.snapshot.get_or_init(make).await.clone())
    }
}

fn json(value: &impl serde::Serialize) -> Page {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| error.to_string())
}

/// The pages of the latest tick.
#[derive(Debug)]
pub(super) struct Shelf {
    publication: Publication,
    /// Held only to look at a pointer or to exchange it.
    latest: Mutex<Arc<Pages>>,
}

impl Shelf {
    pub(super) fn new(publication: Publication) -> Self {
        Self { publication, latest: Mutex::default() }
    }

    pub(super) fn pages(&self) -> Arc<Pages> {
        let published = self.publication.borrow().clone();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.tick() != published.as_ref().map(|published| published.tick) {
            *latest = Arc::new(Pages { published, ..Pages::default() });
        }
        Arc::clone(&latest)
    }
}
