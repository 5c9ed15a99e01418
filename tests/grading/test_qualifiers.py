"""Words and signs next to a number: what changes its value is no answer, what only goes with it does not count."""

import pytest

from lightning_pspo.grading import grade
from tests.support.verdicts import cases

MARKED = r"""
? 5
- x > 5 | x < 5 | x \ge 5 | x \leq 5 | x \neq 5 | x \ne 5 | x != 5 | x >= 5 | > 5 | ≥ 5 | < 5 | ≤5 | ≠ 5 | x ≠ 5
- 5 < x | 5 \le x | 0 < x < 5 | 5 < x < 6 | x \not= 5
- more than 5 | less than 5 | fewer than 5 | greater than 5 | over 5 | under 5 | above 5 | below 5 | almost 5
- nearly 5 | just under 5 | slightly more than 5 | at most 5 | at least 5 | up to 5 | no more than 5 | not more than 5
- greater than or equal to 5 | between 4 and 5 | between 5 and 6 | 5 or more | 5 or less | 5 or fewer | 5 and above
- 5+ | smaller than 5 | strictly less than 5 | beyond 5 | exceeds 5 | a minimum of 5 | a maximum of 5
- not 5 | isn't 5 | never 5 | definitely not 5 | not equal to 5 | anything but 5 | other than 5 | except 5
- neither 4 nor 5 | nowhere near 5 | x is not 5 | cannot be 5 | far from 5 | not 5 but 6 | 6, not 5 | 6 instead of 5
- 6 rather than 5 | 6 (not 5)
- 5 or 6 | 6 or 5 | either 5 or 6 | 5 or maybe 6 | 5/6 | 5, 6 | 5 and 6 | 5 and/or 6 | maybe 5, maybe 6 | 5 (or 6)
- either 4 or 5 | 4 or 5 | 5; 6 | 5 \text{ or } 6 | x = 5 or x = 6 | 5 \lor 6 | 5 vs 6 | 5 / 6 / 7 | {5, 6} | \{5,6\}
- (5, 6)
- 5 dozen | 5 hundred | 5k | 5K | 5 thousand | 5 million | five dozen | 5 score | 5 gross | 5 lakh | 5 billion
- 5 tens | 5 tenths | 5 hundredths | 5‰ | 5 per mille | 5 permille | 5 thirds | 5 halves | half of 5 | twice 5
- double 5 | a fifth | one fifth | 5 squared | 5 cubed | square root of 5 | log 5 | ln 5 | minus 5 | negative 5
- 5 factorial
- 25 remainder 5 | 5 remainder 3 | 5 R 3 | 5 r 3 | 5R3 | 5 r. 3 | 5 rem 3 | 5 with a remainder of 3
- 5 with remainder 3 | 5, remainder 3 | 5 remainder of 3 | 5 (remainder 3) | 5 \text{ R } 3
- 5-7 | 5–7 | 5 - 7 | 5 to 7 | from 5 to 7 | 3-5 | 3–5 | 5~7 | 5 through 7 | 5...7 | between 5 and 7 | [5, 7] | (5, 7)
- 5 up to 7
- ±5 | \pm 5 | +/- 5 | +-5 | plus or minus 5 | 5 ± 1 | 5 \pm 1 | 5 +/- 1 | 6 ± 5 | 5 plus or minus 1
- 5 give or take 1
- 5 1/2 | 1 5/6 | 5 and a half | five and a half | 5½ | 5.5 | 5\frac{1}{2} | 5 1/3 cups | 5,5 | 5 and 1/2 | 5 point 5
- five point two | 4 and a half
- 5:30 | 5:30 pm | 17:05 | 5/6/2020 | 2020-05-05 | 05/06 | 5:1 | 5 : 6 | 5 to 1 | 1:5 | 5 hours 30 minutes
- 5 h 30 min | 5 hr 12 min | 5 feet 6 inches | 5 ft 3 in | 5'6" | 5 min 20 s | 5 dollars and 30 cents
- 5 pounds 3 ounces | May 5, 2020
- 5e3 | 5E3 | 5 x 10^3 | 5 × 10^3 | 5*10^3 | 5 \cdot 10^{3} | 5\times 10^3 | 5e-1 | 10^5 | 2^5 | 5^2 | x^5 | 5x | 5i
- 5\pi | 5\sqrt{2} | \sqrt{5} | \sqrt 5 | \frac{1}{5} | \frac{5}{6} | 1/5 | -5 | - 5 | −5 | 5% of 20 | x_5 | \log_5
- f(5) | 5a + b | 0.5 | .5 | 50 | 55 | 5.05 | \binom{5}{2} | 5_6 and 7
- 5 thousands | 5 dozens | 5 hundreds | 5 degrees below zero | 5 or eight | 5 (or eight) | 5 is wrong it is eight
- 5 isn't right | 5 and eight | 5 twenty-one | 5 xy
- minus five | two fives | fifth
- 5 is wrong | 5 is not the answer | 5 is incorrect | 5 (wrong) | 5 would be wrong | unless 5 | if 5 | 5 times 2
- 5 more than 3 | 5 less than 8 | 5 fewer than 8 | 5 plus 2 | 5 minus 2 | 5 divided by 2 | 5 over 2 | 5 out of 6
- 5 in 6 | 5 per 6 | 5 of 6 | 5 out of every 6
+ 5 | 5. | 5.0 | 5 apples | $5 | 5 dollars | five | Five | 5 km | x = 5 | 5 = x | 5\% | exactly 5 | only 5 | about 5
+ approximately 5 | roughly 5 | around 5 | just 5 | simply 5 | x \approx 5 | ≈ 5 | ~5 | \approx 5 | (5) | {5} | 05
+ +5 | 5 (five) | five (5) | 5 apples left | 5 in total | a total of 5 | 5 people in all | 5 times | 5 more
+ 5 more apples | 5 feet | 5 m/s | 5 square meters | 5^\circ | 10/2 | \frac{10}{2} | 5, not 6 | 5 rather than 6
+ 5 instead of 6 | 5 (not 6) | 5 years old | 5 or 10/2 | 5 or 5.0 | 5 or five | 5 pairs | 5 sets | 5 pm | 5 remaining
+ 5 extra | \textbf{5} | 5 each | 5 apiece | 5 per person | 5 a day | 5 units | 5 cm | 5 hours | equal to 5 | equals 5
+ x equals 5 | x is 5 | it is 5 | 5 for each of them
? 500
+ 5 hundred | five hundred | 500 | 5e2 | 5 x 10^2 | 5*10^2 | 5.00 hundred
- 5 | 5 dozen | 50 | 5 thousand
? 60
+ 5 dozen | five dozen | 60 | 5 dozen eggs
- 5 | 12
? 5000
+ 5k | 5K | 5 thousand | 5,000 | 5 000 | five thousand | 5e3 | 5 × 10³ | 5.0e3 | $5k | $5K
- 5 | 5 million | 5e4
? 5000000
+ 5M | $5M | $5M dollars | 5M people | 5 million | 5mn | $5 M
- 5 | 5k | 5B
? 2000000000
+ $2B | 2bn | 2 bn
- 2 | 2M
? 0
+ no apples | zero apples | No apples
- no solutions | nothing | no
? 2
+ twice
- once | thrice
? 3.5
+ 3 1/2 | 3 and a half | 3½ | three and a half | 3\frac{1}{2} | 7/2 | 3.50 | 3 and 1/2 | three point five | 3 1/2 cups
- 3 | 31/2 | 3-1/2 cups or 4 | 1/2 | 3 or 1/2
? 25
- 25 remainder 3 | 25 R 3 | 25 r3 | 25 R3 | 25 rem. 3 | 25 and 3 left | 25 with a remainder of 3 | 25 + 3 | 25.3
? 25 R 3
+ 25 R 3 | 25 remainder 3 | 25 r 3 | 25 R3 | 25 with a remainder of 3
- 25 | 3 | 25 R 4 | 24 R 3 | 3 remainder 25
? x > 5
+ x > 5 | 5 < x | (5, \infty)
- 5 | x < 5 | x \ge 5 | x = 5 | x \ne 5
? \pm 5
+ \pm 5 | ±5 | 5, -5 | -5 and 5 | x = 5 or x = -5 | plus or minus 5 | +/- 5
- 5 | -5 | 5 ± 1
? 5, 6
+ 5 or 6 | 5 and 6 | 6, 5 | x = 5 or x = 6 | \{5, 6\} | either 5 or 6 | 5; 6
- 5 | 6 | 5-6 | between 5 and 6
? 1/2
+ 50% | 0.5 | half | one half | a half | \frac12 | 50 percent | 50 per cent
- 2 | 1 | 50‰ | 1:3 | 1 2
? 5\frac{1}{2}
+ 5.5 | 11/2 | 5 1/2 | five and a half
- 5 | 1/2
? [5, 7]
+ [5, 7] | 5 \le x \le 7 | 5 ≤ x ≤ 7
- (5, 7) | 5 | 7 | 5, 7
? 12
- less than twelve | fewer than twelve | more than a dozen | under a dozen | twelve hundred | not twelve
- twelve or thirteen | twelve and a half
+ twelve | a dozen | exactly twelve | twelve apples | one dozen | 12 apples or one dozen
"""
SENTENCES = r"""
? 5
- So x > 5. | So x \neq 5. | Therefore x is greater than 5. | x must exceed 5. | Hence $x > 5$. | Thus \(x \ne 5\).
- So x cannot equal 5. | x is never 5. | 2x - 10 > 0, so x > 5. | She has fewer than 5 apples.
- There are no more than 5 of them. | So it isn't 5. | It is either 5 or 6. | So 5 or 6. | That makes 5 dozen.
- That makes 5 hundred. | So she gets 5k. | So it costs $5M. | It lies between 5 and 7. | So it is between 4 and 5.
- That is 5 remainder 3. | 28 / 5 = 5 remainder 3. | That makes 5 R 3. | The value is 5 ± 1. | x = ±5 | So x = \pm 5.
- He needs 5 and a half hours. | It starts at 5:30. | So x ≤ 5. | We see that x >= 5. | So x != 5
- We conclude that x < 5. | The answer is x < 5. | Answer: more than 5 | The answer is not 5.
- The final answer is less than 5. | It is over 5. | It is almost 5. | So n ≥ 5 | So 5 < n.
- He has more than 5 apples. | That is up to 5. | So x is not equal to 5. | The answer can't be 5.
- The answer is at least 5. | It cannot be 5. | It is anything but 5. | The result is 5-7.
- The result is 5 to 7 apples. | So $5 < x < 7$. | so $x\neq5$ | $$x \geq 5$$ | So the answer is $x > 5$.
- So 0 ≤ x < 5. | I doubt that it is 5. | It is nearly 5. | The answer is 5, or possibly 7. | So 5+ apples are left.
- x is the sum of 6 and 5. | x is 5 more than y. | So x is – 5. | She earns minus 5 dollars.
- It is 2 to the power of 5.
+ So x = 5. | So x = 5 > 3. | So x = 5, which is more than 3. | Since 7 > 3, the answer is 5.
+ She has 5 more apples than Tom. | She has 5, which is less than 12. | So she needs 5 more. | It takes 5 times.
+ It is about 5. | It is approximately 5. | Not 4 but 5. | So it is not 4 but 5. | It isn't 4. It is 5.
+ It is 5, not 6. | She has 5 apples (fewer than 12). | So there are 5 apples left over.
+ It is more than 3, namely 5. | He has 5 left, with 3 gone. | Therefore, she has 5 apples. This is more than 3.
+ So x = 5 and x > 0. | So x = 5 (since x > 0). | We need x > 0, so x = 5. | The answer is 5 (not 6).
+ The answer is 5, since 5 < 7. | x = 5 or x = -3, but x > 0, so x = 5. | The answer is exactly 5. | It is only 5.
+ He is no more than 5, so 5. | #### 5⏎This is more than 3. | \boxed{5} > 3 | That is 20 - 15 = 5 more.
+ After 3 days 5 are left. | So they have at least $x = 5$. | Thus, the answer is 5 (or 5.0).
+ so the ratio is 10/2 = 5 > 1 | Since x > 3 and x < 7 and x is odd, x is 5. | She has 5 apples, not 6 apples.
? 12
- She has less than twelve. | She has fewer than twelve apples. | So not twelve. | So she has nearly twelve.
- There are more than a dozen.
+ She has twelve. | So she has twelve apples. | So she has exactly twelve apples. | That makes a dozen.
? 7
- x \in (5, 7) | So -x < -7. | 3 < x < 7 | from 5 to under 7
+ from 5 it rises to 7. | Since 5 < 7, the larger is 7. | the larger of 5 and 7 is 7 | 3 < x = 7
? 60
+ That makes 5 dozen. | So she has five dozen eggs.
? 6
- It is either 5 or 6. | So it is 5 or 6. | So she has 5 or 6 apples. | It is between 5 and 6.
- It takes 5 to 6 hours. | So 5 feet 6 inches. | It takes 5 hours 6 minutes.
+ It rises from 5 to 6. | => 6 | So it's 0.5 * 12 = 6. | 12/2 = <<12/2=6>>6 | <b>6</b> | It is -> 6 | ⏎> 6
+ That rounds up to 6. | She gets $6 in 3 days. | It costs $6 over 4 weeks | The total is 6 or 12/2.
+ So 12 / 2 = 6 incorrect answers. | (x > 0) so x = 6
? 18
+ Janet makes $18 every day at the farmers' market. | She makes $18 per day. | So, Janet makes 9 * $2 = $18 a day.
+ Janet makes $18 in 1 day. | Therefore, Janet makes **$18** every day. | So the answer is $\boxed{18}$ and not 20.
+ Over 3 weeks she makes $18. | She earns more than Tom: $18. | After paying 6 of the 24 she keeps 18.
+ It would take him 18 hours, or 18.0 hours. | He will be over 10, namely 18.
+ So, no more than 2 of the 20 are lost: 18 remain. | Since 20 > 18, it is 18. | He is older than Tom; he is 18.
+ He needs 18 in all, and nothing else. | There were under 20, exactly 18. | In under 2 hours he drives 18 miles.
+ He got 18 of 20 right. | It is 18% of the total. | So 18% of 50 is 9, so he has 18. | He's left with 18, half of 36.
+ Twice 9 is 18. | Double that is 18. | Half of 36 is 18. | There are 18 students, not counting Tom.
+ It is not hard to see that it is 18. | It isn't difficult: 18. | She can't afford 20, so she buys 18.
+ He did not eat 2, so 18 are left. | They can seat at least 12 and they have 18.
+ So we have between 10 and 20, i.e. 18. | There are more boys than girls, 18 boys. | So there are 18 full boxes.
+ They need 18 buses because 17 buses are not enough. | It ends after 18 minutes. | The maximum is 18.
+ The minimum value is 18. | At x = 3 the minimum of f is 18. | He has 18+ years?⏎#### 18
+ Therefore 18 is the answer. | 18 is right. | 18 is correct. | So x=18>0. | So x = 18 ≥ 0. | Since n > 0, n = 18.
+ Hence n = 18 (n > 0). | We reject n = -2 since n > 0. So n = 18. | So the price went from $12 to $18.
+ It goes from 12 up to 18. | Answer: 18 (eighteen) | Answer: 18 dollars per day | The answer is 18 in total.
+ The answer is $18 for 2 days. | The answer is 18 out of the 20. | The answer is 18 times. | The answer is 18 more.
+ The answer is 18 minutes past noon. | The answer is 18, or $18. | The answer is 18, i.e., eighteen.
+ The answer is 18 (rounded up). | The answer is 18 or so.
- The answer is 18 per 3. | So it's under 18. | He is not yet 18. | She is no longer 18. | So less than 18 remain.
- So it's 17 or 18. | It's 18 or 19. | The answer's somewhere between 17 and 18. | That makes 18 thousand.
- 18 thousand | It is less than or equal to 18. | It costs no less than $18. | She earns more than $18.
- We get x ≠ 18. | $x \ge 18$ | So x can be anything except 18. | All values but 18. | It equals 18 squared.
- It is 18 and a third. | x ∈ (18, 20) | x ∈ [18, ∞) | The answer is (18, 20). | The answer is 18:30.
- The answer is 18²  | So 18 < y. | There aren't 18. | It won't be 18. | It should not be 18. | It is hardly 18.
- The answer is 18 million dollars. | The answer is 18 K. | the answer is 18 plus or minus 2 | It's 18x.
- The answer is 18 + 2. | The answer is 18 and 20. | The answer is 18, 20. | So √18. | It's 1/18. | It's 18^2.
- It's 18!. Just kidding: 20. | The answer is 18, no wait, 20. | The answer is 18. Actually, the answer is 20.
? -3
+ So x = -3. | So x = −3. | x is minus 3. | The temperature is -3 degrees. | It is 3 - 6 = -3. | The answer is -3.
+ It's negative 3. | x = - 3
- So x > -3. | It is 3. | So x = ±3. | below -3 | not -3
- She earns 3 dollars.
+ She earns minus three dollars. | She loses 3, so she has negative 3 dollars.
? 6
+ He has half a dozen eggs.
- That makes a dozen. | So he has a dozen and a half.
? 1.5
+ It takes an hour and a half. | It takes one and a half hours.
- It takes half an hour. | It takes an hour.
? 5.5
+ She earns 5 dollars and 50 cents.
- She earns 5 dollars and 5 cents.
? 1250
+ She earns twelve hundred and fifty dollars. | She earns one thousand two hundred and fifty dollars.
? 0.25
+ That's 25%. | 1/4 | The probability is 1/4. | 25 percent
- 25 hundredths of 2 | 0.25 of 4
? 1200
+ 1.2 thousand | 1.2k | 1,200 | $1.2K | So they raised 1.2 thousand dollars.
- 1.2 | 12 | 1.2 million
? 2.5
+ It takes 2.5 hours. | 2 and a half hours | 2 1/2 hours | 2½ | It takes two and a half hours.
+ So it takes 2 and a half hours.
- 2 | half | 5 or 2
"""
QUESTIONS = r"""
? What is the least number of boxes that she needs? => 5
+ She needs at least 5 boxes. | #### at least 5 | The answer is at least 5. | a minimum of 5
- She needs more than 5 boxes. | fewer than 5
? At most how many people can sit down? => 5
+ At most 5 people can sit down. | up to 5 people | no more than 5 | 5 at most
- fewer than 5 | more than 5
? What is the maximum of f? => 5
+ The maximum is at most 5, so 5. | f is at most 5.
- f(x) < 5
? What is the probability that it is red? => 1/4
+ The probability is 1 in 4. | So it is 1 out of 4. | It is red in 1 of 4 cases. | There is a one in four chance.
+ It is 25 percent. | So a quarter of them are red. | So half of the two quarters is a quarter.
- The probability is 4 in 1. | So it is 1 out of 3. | It is 1 in 5, not 1 in 4. | So a third.
? How many of the balls are red? => 5
+ 5 out of 12 balls are red. | So 5 of the 12 are red. | Five are red.
- So 12 out of 5 balls are red. | 4 of the 5 balls are red. | 4 out of 5 balls are red.
? How many boxes can she fill? => 18
+ She can fill 18 boxes with 2 pencils left over. | So it is 18 with 2 left over. | So 18, with 2 left.
- She can fill 17 boxes with 18 pencils left over. | So 2 boxes, with 18 remaining.
? How many pencils are left over? => 2
+ It is 18 with 2 left over. | She can fill 18 boxes with 2 pencils left over.
- It is 2 with 18 left over.
? What is x? => 5
- x is at most 5. | x \le 5
? How many dozen eggs does she have? => 8
+ So she has 8 dozen eggs. | 96 / 12 = 8 dozen | #### 8 dozen | #### 8
- #### 96 | #### 8 hundred
? What score does he need? => 94
+ Thus, x >= 94 | \(x \ge 94\) | He needs at least 94.
- x > 94 | x \ne 94
? How many eggs does she have? => 8
- So she has 8 dozen eggs. | #### 8 dozen
? How many eggs does she have left? => 18
+ She has 18 eggs left. | So at most 2 are broken and 18 are left. | #### 18 eggs
? How much does he need? => 18
+ He needs at least $18. | He needs at least 18 more dollars. | So he must save a minimum of $18.
- He needs more than $18. | He needs less than $18.
? What is the largest integer n with n < 19? => 18
+ So n is at most 18, and n = 18 works. | n ≤ 18, so the largest is 18. | The largest is n = 18. | So n <= 18
- n < 18
? How much does it cost, in dollars? => 0.5
+ 50 cents | It costs 50 cents. | #### 50¢ | #### $0.50 | $.50 | \boxed{50 \text{ cents}}
- 50 dollars | 5 cents | .5 cents | It costs 50.
? How many dollars does she have? => 50
+ $50 | 50 dollars | 5000 cents
- 50 cents | #### 50¢ | She has 50 cents. | The answer is 50 cents. | \boxed{50\text{ cents}} | $0.50
? How many cents does she have? => 50
+ 50 cents | #### $0.50 | #### 50¢ | \boxed{\$0.50} | 50 | It costs $0.50. | So it is $50$. | It costs $0.50 in all.
- #### $50 | #### 50 dollars | 5 cents | It costs $50. | It costs $0.50$
? How many cents does one pencil cost if the price in dollars of six is 3? => 50
+ 50 cents | So it costs 50 cents.
? How many cents does it cost? => $50$
+ 50 cents | #### $0.50 | \boxed{50 \text{ cents}}
? Let $5 a$ be the cost of a pens. Find a. => 50
+ 50 cents
? A pen costs $5 and a book $7. How much is missing? => 0.5
+ 50 cents | #### 50¢
? How many hours does he work in total? => 30
+ The answer is 30. He works 1 hour on each of the 30 days. | The answer is 30, since there are 30 days.
+ It takes 1800 minutes. | The answer is 1800 minutes.
- It takes 30 days. | The answer is 30 minutes.
? How many minutes does he run? Express your answer in hours. => 2
+ It takes 2 hours. | 2
? How many cents do 4 pens cost? => 100
+ The total is $100.$ | The total is $100 $ | $$100.$$ | It costs $1.00. | $100\,$cents
- It costs $100.
? How many seconds? => 7407407340740740740
+ It takes 123456789012345679 minutes
? How many days? => 365
- The answer is 1 year | 365 hours
? Is 7 prime? => yes
+ Yes, 7 is prime. | **Yes**, because 7 has two divisors. | Let me check 7. Yes, it is. | Yes! | True
- No, 7 is not prime. | 7 | Yes? No. | Yes and no: 7 | Yesterday, 7 was prime.
? Is 8 prime? => No
+ No, 8 = 2 * 4. | 8 = 2 * 4. No, it is not. | False
- Yes, 8 is prime. | No. Wait. Yes. | Nobody, 8
? In which place did he finish? => 3
+ He finished in third place. | 3rd | the third | #### 3rd | He came in third. | He is the third one.
- a third | the second | the thirteenth | #### third of 3 | 1/3 | the twenty-third | 23rd | third
? In which place did he finish? => 3rd
+ 3 | 3rd | third place | #### third | He came in third.
- 4th | 1/3 | a third | thirteenth
? What is 78 divided by 3? => 26
+ 26 | #### 26 R 0 | 78 / 3 = 26
- 26 remainder 1 | 26 R 2 | ±26 | ≥26 | \le 26 | < 26 apples
? Simplify the root of 12. => 2\sqrt{3}
+ 2*sqrt(3) | So it is 2√3. | 2 \sqrt(3)
- 2*sqrt(2) | 3\sqrt{2} | 2\sqrt{3} - 1
? It was dated to 8400 BC. What year is the second site from? => 852
+ It is from 852 BC. | 500 + 352 = 852
? What year was it? => 1998
- It was 1998 BC. | It was 1998 BCE.
? How many students do not own a pet? => 160
+ 200-40=160 do not have pets
? How many students own a pet? => 160
- 200-40=160 do not have pets | 160%
? What is the discount on the shirt? => 20
+ The discount is 20%.
? By how much did the population grow? => 15
+ It grew by 15%.
? Write 45 in base seven. => 63
+ 63_7
? What is 45 in binary? => 101101
+ 101101_2
? At what time does it leave? => 2:30 pm
- 150 minutes
? Which planet is the largest? => Jupiter
- If the planet is Jupiter
? How likely is a blue one? => 25
+ (3/12) * 100% = 25%.
? Expand the square. => x^2 + 2x + 1
+ `x^2+2x+1` | 1 + 2*x + x**2
- (x+1)^2 | (x+1)(x+1) | (x+2)^2 | x^2 + 2x | x^2 + 2x + 1 + x
? Solve for x. => -2, 2
+ x=2 or x=-2 | -2, 2 | x = 2 and x = -2 | x = \pm 2
- x=2 or x=-1 | 2 | 2, 2 | if x=2 or x=-2 | not x=2 or x=-2 | suppose x=2 or x=-2 | x=2 or x=-2?
? Find the vertex. => (-1/4, -2)
+ The vertex is at (-1/4, -2). | It is (-1/4, -2) | 8/(-32) = -1/4 so it is at (-1/4, -2).
? What is the probability? => 1/12
+ The probability is one twelfth. | It is 1/12 (1/3 * 1/4).
? Find all solutions. => 4, -3
+ \boxed{x=\frac{1\pm7}{2}\Rightarrow x=4,-3}
- \boxed{x=4,-3\Rightarrow x=4}
? Where do they meet? => (1, 2)
+ x=1, y=2 | \begin{pmatrix}1\\2\end{pmatrix} | They meet at (1, 2). | They do not meet at 3, but at (1, 2).
+ It is not hard to see that they meet at $(1, 2)$. | They do not meet only at 3: $(1, 2)$
- x=2, y=1 | (1, 2, 3) | They do not meet at (1, 2). | They never meet at $(1, 2)$. | It isn't $(1, 2)$.
? Divide 37 by 5. => 7 R 2
+ 7 remainder 2 | 7 R2 | 7 r 2.
- 7 R 3 | 7 | 2
? Which of them? (A) 1 (B) 2 => B
+ (B) | \text{B} | b
- (A) | A | 2 | (B) is wrong | B) false | (B): eliminated | B: A | (A) 1 (B) 2 | (A) 1⏎(B) 2 | A⏎B | Wrong:⏎B
- (B) or (A) | B: not B | #### (B) or (A) | #### B: not B
? How many real solutions are there? => 0
+ None. | no real solutions | There are no real solutions. | #### none | 0
- There are solutions. | infinitely many
? What is 17 + 26? => 43
+ 43⏎⏎Question: What is 1 + 1?⏎2 | 43 (17 + 26) | 43⏎Q: What is 2 + 2?⏎A: 4
- 44⏎⏎Question: What is 43?⏎43
? Is the statement true or false? => true
+ The statement is true. | So this claim is true.
- The statement is false. | The statement is not true.
? On which day in June? => June 20
+ The answer is June 20. | June 20
- The answer is June 21. | June 2
? What is the final hexadecimal value? => 0x2f7
+ 0x2f7 | 0x2F7 | #### 0x2f7
- 0x2f8 | -0x2f7 | 0x7f2 | 0
? Convert 87 to base 5. => 322_5
+ 322_5 | \boxed{(322)_5} | \boxed{322\text{ (base 5)}} | 322 in base 5
- 322_6 | \boxed{(322)_4}
? What is the sum of the vectors? => (5, 7, 9)
+ (5, 7, 9) | [5, 7, 9] | \boxed{[5,7,9]}
- [5, 9, 7] | [5, 7]
? How many meters does he run? => 540
+ He runs 540 meters in 9 sprints of 60. | 540 meters (9 sprints of 60 meters) | #### 540 meters (9 times 60)
+ He runs 540 meters: 180 in each of 3 sets. | He runs 540 meters a week, or 180 meters per session.
- He runs 540 meters and then 60 meters.
- He runs 60 meters in 540 sprints. | He runs 500 meters, so 60 meters less than 540.
? How many shirts did she order? => 75
+ ### Final Answer⏎Krissa ordered **75 shirts** in total. | She ordered **75** of the 80 shirts.
+ She paid $7 + $6 = $13 for **75 shirts**, and 3 are left. | She ordered **seventy-five shirts** in 2 days.
- **Step 75:** she ordered 80. | She did not order **75 shirts**.
- She ordered **80 shirts** in **75 days**. | **75.** So 80.
? How many apples does Tom have? => 14
+ Tom has 10 apples, plus 4 from Ann, so 14. | With 10 apples at the start plus the 4, this gives 14.
- Tom has 14 apples, plus 4 from Ann, so 18.
? How many eggs does he eat? => 3
- He eats 3 eggs for breakfast, 4 eggs for lunch.
? How many pens does Ben have? => 18
+ Ben has 12, Ava gave him 6, 18. | **18** pens (12 + 6)
? What time does the movie end? => 4:30
+ It starts at 2:00, ends at 4:30. | From 2:00 PM it ends at 4:30 PM.
? How many slices are left? => 2
+ **8** slices minus 6 leaves 2. | They ate **6** of the slices, 2 are left. | **Total for 8 people**: 2
- They ate **2** of the slices, 6 are left.
? How much does Ann save on a $60 coat? => 6
+ Ann pays $54, so she saves $6.
? What is the greatest number of backpacks? => 3
+ They can fill at most 3 backpacks, each with 3 pencils and 5 notebooks.
? In which direction is she facing? => east
+ She is facing **east**.
- She is not facing **east**. | She is facing **west**, not east.
? How many more visitors were there than before? => 57
+ There were 705 visitors, 57 more than on the previous two days. | There were **57** more visitors (705 vs. 648).
- There were 57 visitors, 705 more than on the previous days.
? How many stickers does Ben have? => 6
+ Ben has 6 and Ava has 18. | Ava has 18 stickers and Ben has 6.
+ Ben: 6, Ava: 18 | There are 6 stickers, 2 of them red.
- Ben has 18 and Ava has 6. | Ben: 18, Ava: 6
? How much money does he lose? => 25
+ He loses $25 when he sells the bike for $95. | #### He lost $25. | It costs him $25 by selling it for $95.
- #### $25 profit | The answer is a profit of $25. | You save 25 dollars and lose $30.
? What percent is the discount? => 25
+ The discount is 25% ($10 off $40). | The discount is $10, which is 25%.
? How many cookies are left? => 15
+ 15 of the 24 are left. | She has 15 left of the 24 cookies. | There are fifteen cookies left: nine are gone.
- #### 15 eaten | \boxed{15 \text{ eaten}} | The answer is that she ate 15. | The answer is 15 eaten.
? How much in dollars does she make? => 18
+ She makes 1800 cents. | #### 1800 cents
? On what date does it begin? => April 7
+ 7 April | #### Apr 7 | \boxed{\text{April 7th}}
+ It begins on April 7th. | So 38 - 31 = 7: April 7. | on the 7th of April
- 8 April | #### May 7 | It does not begin on April 7. | April 17
? What day of the week is it? => Thursday
+ 10 days from Monday is Thursday.
+ Thursday, because 10 days are a week and 3 days. | In 10 days, it is a **Thursday**.
- It is Wednesday, one day before Thursday. | It is not Thursday. | Thursday or Friday
? Who has more money, Ana or Bo? => Bo
+ Bo has more money. | **Bo** has more money than Ana. | Ana has 75 cents and Bo has 80, so Bo has more.
- Ana has more money than Bo. | Bo has less money. | Bo does not have more money.
? How many red, blue and green beads are there? => 16, 10, 6
+ Red: 16⏎Blue: 10⏎Green: 6 | 2 * 8 = 16⏎So she has 16 red, 10 blue and 6 green beads.
- Red: 16⏎Blue: 10⏎Green: 5 | Red: 16⏎Blue: 10
? When does it end? => 9:05
+ It ends at 9:05, 50 minutes after 8:15. | It ends at 9:05 a.m., since it started at 8:15.
- It goes from 9:05 to 9:50. | It ends at 9:50, 45 minutes after 9:05.
? How long is it in minutes? => 105
+ 105 min: 60 minutes and 45 minutes
- 1 hour and 105 minutes
? Which is true? (A) 10 (B) 12 (C) 14 => B
+ (B) 12 | B) 12 | B: 12 | (B) 12 is correct. | **(B) 12** | [B] | \boxed{(B) 12} | It is B.
- (B) 14 | B) 10 | \boxed{(B) 14} | (A) 10 | B or C
? How many days does it take? => 14
+ a fortnight | It takes a fortnight. | two weeks
- a week | It takes a week. | A week has days
? How many failed the test? => 5
+ 5 students failed. | So 5 students did not pass.
- So 5 passed. | 5 students passed the test.
? Some of the 20 students passed and the others failed. How many failed? => 5
+ 15 passed and 5 failed. | So 5 failed.
- 5 passed. | So 5 students have passed.
? She had 12 apples and ate some. How many are left? => 7
+ She has 7 left. | She ate 5 and has 7. | She ate 12 - 7 = 5, so 7.
- She ate 7. | So she has eaten a total of 7. | 7 apples were eaten.
? How many stones has he left to sell? => 7
+ He sells 7. | 7 are left.
? How many potatoes are not sold yet? => 45
+ So 45 potatoes are left.
? How much profit did he make? => $250
+ So he made a profit of $250. | He made $250. | 500 - 250 = 250
- So he made a loss of $250. | He lost $250. | That is a $250 loss.
? How many dollars did he lose? => 250
+ So he made a loss of $250. | He lost 250 dollars.
- He made a profit of $250.
? How many passed the test? => 5
+ 5 students passed. | 7 failed, so 5 passed. | So there are 5 after 15 failed.
- 5 of them failed. | So 5 failed.
? How many are wrong? => 6
+ 6 are wrong.
- 6 are right. | 6 answers are correct.
? How many of the 12 cannot swim? => 9
+ 9 cannot swim. | 9 can't swim. | 9 can not swim.
- So 9 can swim.
? How many eggs can he carry? => 5
+ He can carry 5 because he cannot carry more.
- 5 eggs cannot be carried.
? How many of the cats are alive, if 3 died? => 7
+ 7 cats survived. | 7 live cats
? How many years did he live? => 70
+ He was 70 when he died. | At 70 he died.
? How many died, and how many survived? => 7
+ 7 survived.
? How many dollars per hour does she earn? => 15
+ $15 per hour | 15 dollars per hour | She earns $15 an hour. | 1500 cents per hour
- 15 cents per hour | 15 cents an hour | 15¢ per hour
? How many minutes a day does he walk? => 120
+ 2 hours a day | He walks 2 hours. | He walks two hours a day.
- 2 minutes a day | 120 hours
? He runs 12 hours. How many minutes is a sixth of that? => 120
+ 2 hours
? How many seconds are in 2 minutes? => 120
+ 120 seconds | 2 minutes = 120 seconds
- 2 minutes
? How much did he earn, not counting tips? => 50
+ Not counting tips he earned $50.
- He did not earn $50.
? Convert 13 to binary. => 1101
+ 1101_2
- 1101_3 | 1101_{10}
? What is the probability? => 1/6
+ The probability is 1/6, or about 16.7%. | It is 1/6, approximately 0.167. | 1/6 (about 16.7%)
- The probability is 1/6, or about 25%. | about 17% | The answer is 1/5, or about 16.7%.
? What is that, to the nearest cent? => 0.33
+ 1/3, or about 0.33 | 1/3 ≈ 0.33
- 1/3, or about 0.3 | 1/3
? About how many people is that? => 17
+ 50/3, or about 17 people
? Which question did he fail? => 8
+ He failed question 8.
- He failed question 7. | It was not question 8. | He didn't fail question 8.
? Which step is wrong? => 2
+ The wrong step is step 2.
- The wrong step is not step 2.
? Give the time in 24 hour format. => 15:45
+ 15:45
- 3:45 | 3:45 pm
? Use the 24-hour clock. When does it end? => 09:05
+ 9:05 | 09:05
- 9:05 pm | 21:05
? The shop is open for 24 hours. When does the bus come? => 3:30 PM
+ 15:30 | 3:30 pm
? What is the temperature? => -5
+ 5 degrees below zero | It is 5 below zero. | -5 degrees
- 5 degrees above zero
? What is the temperature? => -5
+ It is 5 degrees below zero. | -5 degrees below zero | It is five degrees below zero. | It is -5 degrees.
- 5 degrees above zero | It is five degrees.
? How many degrees below zero is it? => 5
+ It is 5 degrees below zero.
? How many days? => 14
+ two weeks | It takes two weeks. | #### two weeks
- two hours
? What is the ratio of boys to girls? => 2:3
+ 4:6
- 2:3:1
? What is the score? => 0:3
+ 0:3
- 0:5
? How many are in the bus? => 25
+ Wait, that is wrong. 20 + 5 = 25.
+ The answer is 25. Wait times vary from 5 to 15. | The answer is 25. Wait, let me check: 20 and 5. Yes.
- The answer is 25. Wait, I forgot one, so 26.
? How many minutes did she run? => 12
+ She ran 3 km in 12 minutes. | She ran 3 km for 12 minutes.
- She ran 12 km in 3 minutes.
? How many minutes are left? => 18
+ She has 18 minutes left for 12 minutes.
? How long did the walk take? => 45
+ He walked 3 miles in 45 minutes.
? How many hours? => 3
+ 3 hours a day | 180 minutes a day
- 3 minutes a day
? How far did she run? => 12
+ She ran 12 km in 1 hour.
? Which of the options holds? (A) 2 (B) 3 => B
+ Option B is correct. | B is the right answer.
- Option A is correct. | B is not correct. | (B) 2
? When does she arrive? => 3:30 PM
+ 3:30 PM | at 3:30 p.m. | 15:30 | #### 3:30 pm
- 3:30 AM | at 3:30 am | #### 3:30 AM
? How many apples has he? => 6
+ If he buys 2, the answer is 6. There were 4. | If the price doubles the answer is 6. Checked with 3.
+ The answer is 5? No, it is 6. | I wonder if the answer is 5. It is 6.
- The answer is 6? No, it is 5. | I do not know if the answer is 6, or 5.
- Suppose the answer is 6. | I do not think that the answer is 6.
- It is false that the answer is 6. | I don't say my answer is 6. | I doubt the answer is 6. | Assume the answer is 6.
+ There is no doubt that the answer is 6. | I have no doubt the answer is 6. | Without a doubt the answer is 6.
+ No doubt the answer is 6. | There is no doubt that it is 6. | I don't doubt that it is 6.
+ I can't believe the answer is 6! | By assumption the answer is 6.
? What is 3 factorial? => 6
+ 6 | \boxed{6} | 3! = 6 | #### 3! = 6
- \boxed{6!} | #### 3! | \boxed{3!} | $3!$ | It is $6!$.
? What is 120 / 20? => 6
+ It is 6! | It costs $6! | $3! = 6$ | \boxed{6!}
- $6!$ | So it is $6!$. | The answer is \(6!\).
? Hurray! Tom wins (again)! How many points are 3 and 3? => 6
+ #### 6!
- #### 7!
? How many apples are there? => 6
+ \boxed{6!} | #### 6! | 6! | Are there 7? No, there are 6. | How many are there? 6 | There are 6. Any questions?
+ The answer is 6, right? | So the total is 6, okay? | So 6 apples, correct? | The answer is $6$, right?
+ The answer is $6$ Q: What is 2+2?
- 7! | The answer is 6? | Is the answer 6? | So there are 6 apples? | Maybe it is $6$?
- The answer is 6? No. | So it is 6i.
- The answer is $6$? | #### 6? | \boxed{6?} | 6? | Could the answer be \frac{12}{2}?
? How many did they not sell? => 6
+ They did not sell 6. | They didn't sell 6 cakes. | 6 cannot be sold.
- 6 is not right. | So 6 is not correct. | 6 is not the answer. | 6 is not it. | 6 is wrong.
? Ann, who does not share, buys 6. What has she left? => 6
- She does not have 6. | She cannot keep 6.
? Which number is not prime? => 9
+ 9 is not prime. | 9 isn't prime.
- 7 is not prime. | 9 is not right.
? How many pages did he read? => 12
+ He read 12 pages.
- Page 12 | See page 12 of the book. | See Section 12.
? On which page does chapter 3 start? => 12
+ Page 12 | On page 12. | #### Page 12
- Page 13 | See chapter 12.
? Find the problem that he left out. => 12
+ Problem 12 | It is Problem 12.
? What chapter is next? => 12
+ It is Chapter 12. | Chapter 12
? How fast is it, in m/s? => 5
+ #### 5 m/s | It moves at 5 m/s. | It moves at 5 meters per second. | #### 0.005 km/s
- #### 5 km/s | It moves at 5 km/s. | #### 5 mph
? How many cents per minute does it cost? => 20
+ It costs $0.20 per minute. | 20 cents per minute
- It costs $20 per minute.
? What percentage is the discount? => 20
+ It is reduced by 20%.
? How fast is it? => 5 km/h
+ 5 km/h | 5 kilometers per hour | 5
- 5 m/s | 5 miles per hour
? It costs $80. What is the price in a sale? => 60
+ It falls by 25% to $60. | The price falls by 20 to 60.
- The price falls by $60. | It is reduced by 60.
? By how much does the price fall? => 60
+ The price falls by $60. | It is reduced by 60.
? How much does he earn? => 120
+ Not counting breaks he earns $120.
- He is not earning $120. | He does not earn 120, counting all.
? In what year BC did he die? => 44 BC
+ He died in 44 BC. | #### 44 BC
- He died in 45 BC.
? In what year BC did he die? => 44
+ He died in 44 BC.
? At what time does it leave? => 2:30
+ 2:30 | It leaves at 2:30.
- 150 minutes | 2 hours 30 minutes
? When he runs, how long does it take? => 2:30
+ 150 minutes | 2 hours 30 minutes
? At what hour does it leave? => 2:30
- 150 minutes
? How long does it take? => 2:30
+ 150 minutes | 2 hours 30 minutes
? How many has he? => 12
+ The answer is 12 if he buys 7. | The answer is 12. It is not possible for him to buy more.
+ The answer is 12. Actually 3 were eaten.
- The answer is 12 if he buys 7, 13 if he buys 8. | The answer is 12 if he buys 7, otherwise 13.
- The answer is 12. Wrong. | The answer is 12. False! | The answer is 12. That's not right, though.
- The answer is 12. This is not possible. | The answer is 12. Actually, 13 apples.
- The answer is 12. Actually it is 13 now. | The answer is 12. Wait, 4 are red, so 8.
? How many balls are red? => 5
+ So 5 of 6 balls are red. | The answer is 5 of the 6. | 5 of 6 | The answer is 5 out of 6. | #### 5 out of 6
- 6 of 5 | 4 out of 5
? What is x? => 5
+ So 5 of 6 balls are red. | 5 of the 6 | The answer is 5 of the 6. | 5 out of 6 balls
- 5 of 6 | #### 5 of 6 | The answer is 5 out of 6. | So it is 5 out of 6. | \boxed{5 \text{ of } 6}
? How many minutes does it take? => 2
+ #### 2 minutes | The answer is 2 min. | \boxed{2 \text{ minutes}} | 2 | #### 2 apples | It takes 2 minutes.
+ It takes 2 minutes in all. | It takes 120 seconds. | In 5 days it takes 2. | He has 2 in 3 days.
- #### 2 hours | The answer is 2 h. | \boxed{2 \text{ seconds}} | The answer is 2 days. | It takes 2 days.
- It takes 2 hours for 12 minutes.
? How many minutes does it take? => 90
+ It takes 1.5 hours. | #### 1.5 hours | \boxed{90}
- It takes 1.5 minutes. | It takes 90 hours.
? How many hours does it take, given in minutes? => 120
+ #### 120 minutes | #### 120
- #### 120 seconds
? How long, in minutes, will it take? => 2
+ #### 2 minutes
- #### 2 hours
? She worked the same number of hours in October. How many hours are in a day? How much money does she earn? => 248
+ The answer is 248 dollars. | #### 248 hours
? The sides are given in feet. What does the fence cost? => 44
+ \boxed{44\text{ dollars}}
? The speed is measured in miles per hour and the time in minutes, how long does a trip take? => 3
+ #### 3 hours
? The speed is given in meters per second. How long does it need? => 20
+ \boxed{20\text{ s}}
? How many hours does he drive on the 5 days? => 60
+ #### 60 | #### 3600 minutes | 60 hours a week
- #### 60 days | #### 60 km | #### 60 km/h
? How many km does he run in an hour? => 12
+ He runs 12 km/h. | #### 12 km
- He runs 12 m/s.
? How many kilometers does he run? => 12
+ He runs 12 km.
- He runs 12 km/h. | He runs at 12 kilometers per hour. | #### 12 hours
? How old is Tom? => 35
+ Tom is 35. | He is 35 years old. | He is 420 months old.
- He is 35 months old. | #### 35 weeks
? A puppy was 3 weeks old two weeks ago. How old is it now? => 5
+ It is 5 weeks old.
? How many seconds does a trip take? => 3
+ It takes 3 seconds a trip.
- It takes 3 hours a trip.
? How many km does he drive in two hours? => 60
+ #### 60 km | #### 60 kilometers
- #### 60 m | #### 60 miles
? How many ml are there? => 480
+ #### 480 ml
- #### 480 cups
? How long is it in cm? => 25.4
+ 25.4 cm | #### 25.4
- #### 25.4 inches
? How many in total did he walk? => 3
+ #### 3 miles
? What are the roots? => x=1, x=2
+ The answer is $x=1$,                     $x=2$ | So $x=1$                  and           $x=2$.
? How many minutes does it take? => 2 hours
+ #### 2 hours
? How much money is left (in millions)? => 4
+ There is $4 million left. | $4 million | 4 | The answer is 4 million.
? How many cm did it grow? => 7
+ It grew by 7 cm. | It grew by 7. | It grew by 0.07 m.
- It grew by 7 m.
? How much does it cost? => 20
+ It costs $20. | 20 dollars | 2000 cents
- It costs 20 cents. | #### 20 cents
? How much are four nickels? => 20
+ 20 cents
? By what percent did the price drop? => 25
+ #### 25% | #### 25
- #### 2500%
? What is the probability? => \frac{1}{6}
+ 1 in 6 | It is 1 in 6. | 1/6
- 1 in 7
? How long does it take? => 1:30
+ 1.5 hours | It takes 1.5 hours. | 90 minutes | It takes 90 minutes. | 1:30
- 1.3 hours | 90 hours
? When does the train leave? => 1:30
- 1.5 hours | #### 1.5 hours
? Which step is wrong? => 2
+ Step 2 is wrong. | It is step 2.
- Step 3 is wrong.
? How many items are wrong? => 6
+ 6 are wrong. | There are 6 wrong items.
? How many items are there? => 6
- 6 is wrong.
? How many eggs? => 36
- The answer is 36 if eggs are big, 40 otherwise. | The answer is 36 if they are big, 40 if not.
? Solve for y'. => y'=3y
+ \boxed{y^{\prime}=3y} | \boxed{y^\prime = 3y}
- \boxed{y=3y'} | \boxed{y^{\prime\prime}=3y}
? Solve. => 8
+ Answer:⏎8
- Answer:⏎8⏎11 | Answer:⏎11⏎8
? What are the roots? => 8, 11
+ Answer:⏎8⏎11
"""
"""A reference, or a question and its reference; right answers (+) and wrong ones (-); ⏎ ends a line."""


@pytest.mark.parametrize(
    ("question", "answer", "verdicts"),
    [*cases(MARKED, ("#### {}", r"\boxed{{{}}}", "The answer is {}.")), *cases(SENTENCES), *cases(QUESTIONS)],
)
def test_verdicts(question, answer, verdicts):
    assert {text: grade(text, answer, question=question).correct for text in verdicts} == verdicts
