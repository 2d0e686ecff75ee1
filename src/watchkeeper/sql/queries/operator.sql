-- What the operator's commands ask.

-- name: database
-- Which database this is, and how large.
SELECT current_database(), current_user, current_setting('server_version'), pg_database_size(current_database());
