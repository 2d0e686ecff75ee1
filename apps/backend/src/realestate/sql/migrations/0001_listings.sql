-- What is offered. A listing comes in as draft or submitted; admin.decision moves it on.
CREATE TABLE listings (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    title           text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    description     text NOT NULL DEFAULT '' CHECK (length(description) <= 10000),
    type            text NOT NULL CHECK (type IN ('apartment', 'house', 'land', 'commercial')),
    price_amount    bigint NOT NULL CHECK (price_amount >= 0),
    price_currency  text NOT NULL DEFAULT 'RWF' CHECK (price_currency ~ '^[A-Z]{3}$'),
    bedrooms        smallint CHECK (bedrooms BETWEEN 0 AND 100),
    bathrooms       smallint CHECK (bathrooms BETWEEN 0 AND 100),
    address_text    text NOT NULL DEFAULT '' CHECK (length(address_text) <= 500),
    lat             double precision CHECK (lat BETWEEN -90 AND 90),
    lng             double precision CHECK (lng BETWEEN -180 AND 180),
    status          text NOT NULL DEFAULT 'submitted' CHECK (status IN (
                        'draft', 'submitted', 'under_review', 'approved', 'rejected', 'published', 'archived')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    -- The Idempotency-Key of the request that made the listing lives and goes with it: no table of keys to prune.
    idempotency_key text UNIQUE CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    request_hash    bytea,
    CHECK ((lat IS NULL) = (lng IS NULL)),
    CHECK ((idempotency_key IS NULL) = (request_hash IS NULL))
);

-- A search answers the newest first, page by page.
CREATE INDEX listings_newest ON listings (status, created_at DESC, id DESC);
-- The review queue is short, whatever the number of listings.
CREATE INDEX listings_in_review ON listings (created_at, id) WHERE status IN ('submitted', 'under_review');
-- Duplicates are looked for in the neighbourhood and by title.
CREATE INDEX listings_place ON listings (lat, lng) WHERE lat IS NOT NULL;
CREATE INDEX listings_title ON listings (lower(title));
