-- The image that an instance boots while it is being mended; the rest of it is in its spec.
ALTER TABLE instances ADD COLUMN rescue_image BLOB REFERENCES images (digest);
CREATE INDEX instances_by_rescue_image ON instances (rescue_image) WHERE rescue_image IS NOT NULL;
