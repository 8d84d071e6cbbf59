"""Trust: certificate authorities and identity. Today the interception authority of one boot; SVIDs, grants and revocation join it here.

Never: a private key on disk, a certificate for a name that no run asked for.
"""
