-- The image of the rescue system that an instance boots; its other settings are in the spec.
ALTER TABLE instances ADD COLUMN rescue_image BLOB REFERENCES images (digest);
CREATE INDEX instances_by_rescue_image ON instances (rescue_image) WHERE rescue_image IS NOT NULL;
