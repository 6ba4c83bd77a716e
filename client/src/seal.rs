//! Secrets at rest: AES-256-GCM under the realm's key, bound to what they belong to.
//!
//! Sealed form (day 1): 12 bytes of random nonce, then ciphertext and tag. The associated data is the access key's id, so
//! a sealed secret cannot be moved to another key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::error::Error;

/// Bytes of the realm's key.
pub const REALM_KEY_BYTES: usize = 32;

/// Seals `secret` for `owner` (an access key id).
///
/// # Errors
/// [`Error::Internal`] when the system gives no randomness.
pub fn seal_secret(realm_key: &[u8; REALM_KEY_BYTES], owner: &str, secret: &[u8]) -> Result<Vec<u8>, Error> {
    let fault = |_| Error::internal("sealing failed");
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).map_err(fault)?;
    let mut body = secret.to_vec();
    key(realm_key)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(owner.as_bytes()), &mut body)
        .map_err(fault)?;
    let mut sealed = nonce.to_vec();
    sealed.append(&mut body);
    Ok(sealed)
}

/// Opens what [`seal_secret`] made.
///
/// # Errors
/// [`Error::Internal`] when it was sealed with another key, for another owner, or was changed.
pub fn open_secret(realm_key: &[u8; REALM_KEY_BYTES], owner: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let fault = || Error::internal("a sealed secret does not open with the realm's key");
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(fault)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| fault())?;
    let mut body = body.to_vec();
    let open = key(realm_key)?
        .open_in_place(nonce, Aad::from(owner.as_bytes()), &mut body)
        .map_err(|_| fault())?
        .len();
    body.truncate(open);
    Ok(body)
}

fn key(realm_key: &[u8; REALM_KEY_BYTES]) -> Result<LessSafeKey, Error> {
    let key = UnboundKey::new(&AES_256_GCM, realm_key)
        .map_err(|_| Error::internal("the realm's key is not a key"))?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[test]
    fn what_is_sealed_opens() {
        let sealed = seal_secret(&KEY, "AKID", b"secret").unwrap();
        assert_eq!(open_secret(&KEY, "AKID", &sealed).unwrap(), b"secret");
        assert_ne!(sealed, seal_secret(&KEY, "AKID", b"secret").unwrap(), "nonces differ");
    }

    #[test]
    fn another_key_owner_or_byte_does_not_open() {
        let sealed = seal_secret(&KEY, "AKID", b"secret").unwrap();
        assert!(open_secret(&[8; 32], "AKID", &sealed).is_err());
        assert!(open_secret(&KEY, "AKIE", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(open_secret(&KEY, "AKID", &bad).is_err(), "byte {at}");
        }
        assert!(open_secret(&KEY, "AKID", &sealed[..11]).is_err());
    }
}
