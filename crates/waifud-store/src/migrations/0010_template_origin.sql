-- The source of a template's image, for refreshes; null for an upload.
ALTER TABLE templates ADD COLUMN origin TEXT;
-- For earlier downloads, only the URL is known, not the source of the checksum.
UPDATE templates SET origin = (
    SELECT json_object('url', source_url, 'catalog', NULL, 'checksum', NULL, 'checksums_url', NULL,
                       'checksums_file', NULL, 'insecure_no_checksum', json('false'))
      FROM template_revisions AS r
     WHERE r.template = templates.name AND r.image = templates.image AND r.source_url IS NOT NULL
);
