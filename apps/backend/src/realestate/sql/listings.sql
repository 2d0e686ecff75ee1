-- name: create
-- Store a listing unless its Idempotency-Key is known; returns it only if it was stored.
INSERT INTO listings (title, description, type, price_amount, price_currency, bedrooms, bathrooms, address_text,
                      lat, lng, status, idempotency_key, request_hash)
VALUES (%(title)s, %(description)s, %(type)s, %(price_amount)s, %(price_currency)s, %(bedrooms)s, %(bathrooms)s,
        %(address_text)s, %(lat)s, %(lng)s, %(status)s, %(idempotency_key)s, %(request_hash)s)
ON CONFLICT (idempotency_key) DO NOTHING
RETURNING id, title, description, type, price_amount, price_currency, bedrooms, bathrooms, address_text, lat, lng,
          status, created_at;

-- name: by_key
-- The listing created with an Idempotency-Key, and the hash of that request.
SELECT id, title, description, type, price_amount, price_currency, bedrooms, bathrooms, address_text, lat, lng,
       status, created_at, request_hash
FROM listings
WHERE idempotency_key = %(idempotency_key)s;

-- name: by_id
-- One listing.
SELECT id, title, description, type, price_amount, price_currency, bedrooms, bathrooms, address_text, lat, lng,
       status, created_at
FROM listings
WHERE id = %(id)s;

-- name: search
-- A page of listings, newest first; NULL does not filter. `text` is a substring, in any case.
SELECT id, title, description, type, price_amount, price_currency, bedrooms, bathrooms, address_text, lat, lng,
       status, created_at
FROM listings
WHERE status = ANY (%(statuses)s::text[])
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(text)s::text IS NULL
       OR strpos(lower(title || ' ' || address_text || ' ' || description), lower(%(text)s)) > 0)
  AND (%(price_min)s::bigint IS NULL OR price_amount >= %(price_min)s)
  AND (%(price_max)s::bigint IS NULL OR price_amount <= %(price_max)s)
  AND (%(currency)s::text IS NULL OR price_currency = %(currency)s)
  AND (%(bedrooms_min)s::int IS NULL OR bedrooms >= %(bedrooms_min)s)
  AND (%(south)s::float8 IS NULL OR lat BETWEEN %(south)s AND %(north)s)
  AND (%(west)s::float8 IS NULL OR lng BETWEEN %(west)s AND %(east)s)
  AND (%(after_time)s::timestamptz IS NULL OR (created_at, id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s;

-- name: find_candidates
-- Candidates for duplicates: the same type and currency, and the same title or a place within the box. The
-- caller scores them.
SELECT id, title, price_amount, bedrooms, lat, lng, status
FROM listings
WHERE type = %(type)s
  AND price_currency = %(price_currency)s
  AND status NOT IN ('rejected', 'archived')
  AND (lower(title) = lower(%(title)s)
       OR (lat BETWEEN %(south)s::float8 AND %(north)s::float8 AND lng BETWEEN %(west)s::float8 AND %(east)s::float8))
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s;

-- name: review_queue
-- Listings that wait for a decision, the oldest first.
SELECT id, title, description, type, price_amount, price_currency, bedrooms, bathrooms, address_text, lat, lng,
       status, created_at
FROM listings
WHERE status IN ('submitted', 'under_review')
ORDER BY created_at, id
LIMIT %(limit)s;

-- name: lock_status
-- The status of a listing, locked so that concurrent decisions see each other.
SELECT status FROM listings WHERE id = %(id)s FOR UPDATE;

-- name: set_status
-- Set the status of a listing.
UPDATE listings SET status = %(status)s, updated_at = now() WHERE id = %(id)s;
