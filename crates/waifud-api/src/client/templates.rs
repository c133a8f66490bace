//! Templates, downloads of their images, and the catalog.

use reqwest::Method;
use waifud_types::template::Template;

use super::{Client, ClientError, ListQuery};
use crate::{CatalogEntry, CreateDownload, CreateTemplate, Download, Page};

impl Client {
    /// Lists templates.
    pub async fn templates(&self, query: &ListQuery) -> Result<Page<Template>, ClientError> {
        self.json(self.get(&["templates"]).query(query)).await
    }

    /// Gets a template.
    pub async fn template(&self, name: &str) -> Result<Template, ClientError> {
        self.json(self.get(&["templates", name])).await
    }

    /// Creates a template from an uploaded image.
    pub async fn create_template(&self, request: &CreateTemplate) -> Result<Template, ClientError> {
        self.json(self.request(Method::POST, &["templates"]).json(request))
            .await
    }

    /// Downloads the image of a template's source again.
    pub async fn refresh_template(&self, name: &str) -> Result<Download, ClientError> {
        self.json(self.request(Method::POST, &["templates", name, "refresh"]))
            .await
    }

    /// Deletes a template.
    pub async fn delete_template(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["templates", name]))
            .await
            .map(drop)
    }

    /// Starts a download that becomes a template.
    pub async fn create_download(&self, request: &CreateDownload) -> Result<Download, ClientError> {
        self.json(self.request(Method::POST, &["downloads"]).json(request))
            .await
    }

    /// Lists downloads.
    pub async fn downloads(&self) -> Result<Page<Download>, ClientError> {
        self.json(self.get(&["downloads"])).await
    }

    /// Gets a download; `None` if it has ended.
    pub async fn download(&self, name: &str) -> Result<Option<Download>, ClientError> {
        match self.json(self.get(&["downloads", name])).await {
            Ok(download) => Ok(Some(download)),
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gets the catalog.
    pub async fn catalog(&self) -> Result<Page<CatalogEntry>, ClientError> {
        self.json(self.get(&["catalog"])).await
    }
}
