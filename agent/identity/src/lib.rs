//! Keys, certificates, the CA and the rustls configurations.
