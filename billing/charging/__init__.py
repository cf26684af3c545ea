"""The money path. In the order in which they run: charge (begin, send), settle, after_failure, look_up, refunds.

Beside them: which payment method is charged (tokens), whether the key fits it (accounts, key), what a charge waits for
(parking), the limits that are asked when it begins (caps), charges that a person asks for (pay_by_hand), how what is
owed comes to its end (endings), and which attempt an answer is of (matching).
"""
