-- Where a template's image comes from, so that it can be asked for again; null for an upload.
ALTER TABLE templates ADD COLUMN origin TEXT;
-- Of what was downloaded before, only the URL is known, not how its checksum was found.
UPDATE templates SET origin = (
    SELECT json_object('url', source_url, 'catalog', NULL, 'checksum', NULL, 'checksums_url', NULL,
                       'checksums_file', NULL, 'insecure_no_checksum', json('false'))
      FROM template_revisions AS r
     WHERE r.template = templates.name AND r.image = templates.image AND r.source_url IS NOT NULL
);
